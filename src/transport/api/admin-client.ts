import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { RetryInfoSchema } from "../../gen/google/rpc/error_details_pb.js";
import { Admin } from "../../gen/ingest/admin/v1/admin_pb.js";
import type { AdminClient } from "./admin-in-process.ts";

/** More than any call but streams takes: `RecountUsage` waits up to a minute. */
const callMsMax = 180_000;
/** How often a call over the rate is repeated, each time after as long as the service asks for. */
const repeatsMax = 10;

/**
 * A client of the administration API of a running service.
 * @param token an access token, or a JWT of the installation's OIDC issuer.
 */
export function adminOverTheWire(baseUrl: string, token: string): AdminClient {
  const authorize: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  // HTTP/1.1, because some proxies speak nothing else.
  const transport = createConnectTransport({
    ...{ baseUrl, httpVersion: "1.1", useBinaryFormat: true },
    interceptors: [withinRate, authorize],
    defaultTimeoutMs: callMsMax,
  });
  return createClient(Admin, transport);
}

/** A call over the rate did nothing, so any call may be repeated. */
const withinRate: Interceptor = (next) => async (request) => {
  for (let repeats = 0; ; repeats++) {
    try {
      return await next(request);
    } catch (error) {
      const waitMs = repeats < repeatsMax && !request.stream ? retryDelayMs(error) : undefined;
      if (waitMs === undefined) throw error;
      await delay(waitMs, undefined, { signal: request.signal });
    }
  }
};

function retryDelayMs(error: unknown): number | undefined {
  if (!(error instanceof ConnectError) || error.code !== Code.ResourceExhausted) return undefined;
  const seconds = error.findDetails(RetryInfoSchema)[0]?.retryDelay?.seconds;
  return seconds === undefined ? undefined : Number(seconds) * 1000;
}
