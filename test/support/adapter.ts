import type { AddressInfo } from "node:net";
import { createIdSource } from "../../src/ids.ts";
import type { RequestEnd, RequestStart } from "../../src/exchange.ts";
import { createAdapter } from "../../src/transport/http/adapter.ts";
import type { AdapterOptions } from "../../src/transport/http/options.ts";
import { type ServerOptions, startServer } from "../../src/transport/http/server.ts";

export interface AdapterUnderTest extends AsyncDisposable {
  readonly url: string;
  readonly port: AddressInfo["port"];
  /** In the order in which the requests began. */
  readonly starts: Omit<RequestStart, "traceId">[];
  /** In the order in which they ended. */
  readonly ends: RequestEnd[];
  /** What the adapter's `onError` was told. */
  readonly errors: unknown[];
  close(drainMs: number): Promise<void>;
}

/** The adapter and the listener with a test's own handlers: no database, no keys. */
export async function startAdapter(
  options: Partial<AdapterOptions>,
  serverOptions: Partial<ServerOptions> = {},
  onListening: (port: number) => void = () => {},
): Promise<AdapterUnderTest> {
  const ids = createIdSource();
  const starts: Omit<RequestStart, "traceId">[] = [];
  const ends: RequestEnd[] = [];
  const errors: unknown[] = [];
  const adapter = createAdapter({
    routes: [],
    rpcs: [],
    services: () => {},
    publicUrl: "http://localhost",
    newRequestId: () => ids.next("req"),
    now: Date.now,
    onBegin(start) {
      starts.push(start);
      return undefined;
    },
    onEnd: (_start, end) => void ends.push(end),
    onError: (error) => void errors.push(error),
    ...options,
  });
  const createAdapterAt = (port: number) => {
    onListening(port);
    return adapter;
  };
  const server = await startServer(createAdapterAt, { host: "127.0.0.1", port: 0, ...serverOptions });
  return {
    url: `${serverOptions.tls === undefined ? "http" : "https"}://127.0.0.1:${server.port}`,
    port: server.port,
    starts,
    ends,
    errors,
    close: (drainMs) => server.close(drainMs),
    [Symbol.asyncDispose]: () => server.close(0),
  };
}
