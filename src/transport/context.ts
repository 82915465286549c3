import { createContextKey, type ContextKey } from "@connectrpc/connect";
import type { Exchange } from "../exchange.ts";

/** Where handlers behind Connect's router find their exchange, in the context values. */
export const exchangeKey: ContextKey<Exchange | undefined> = createContextKey<Exchange | undefined>(undefined, {
  description: "exchange",
});
