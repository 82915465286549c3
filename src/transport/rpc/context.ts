import type { IncomingHttpHeaders } from "node:http";
import { createContextKey, type ContextKey } from "@connectrpc/connect";
import type { Exchange } from "../../exchange.ts";

/** Where handlers behind Connect's router find their exchange, in the context values. */
export const exchangeKey: ContextKey<Exchange | undefined> = createContextKey<Exchange | undefined>(undefined, {
  description: "exchange",
});

/** The request's headers as Node read them. */
export const headersKey: ContextKey<IncomingHttpHeaders | undefined> = createContextKey<
  IncomingHttpHeaders | undefined
>(undefined, { description: "headers" });

/** What the request came over: of HTTP/2 its session, else its socket. */
export const connectionKey: ContextKey<object | undefined> = createContextKey<object | undefined>(undefined, {
  description: "connection",
});
