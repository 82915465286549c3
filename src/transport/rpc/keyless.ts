import type { IncomingHttpHeaders, OutgoingHttpHeaders } from "node:http2";
import { Code } from "@connectrpc/connect";

/**
 * The refusal of one call too many that needs no key, of the health or of reflection; undefined for every other call.
 *
 * A watch of the health is refused as UNIMPLEMENTED: clients that balance by it take every other code for an unhealthy
 * server and fail their calls; with this one they go on without a watch.
 */
export function keylessRefusal(headers: IncomingHttpHeaders): OutgoingHttpHeaders | undefined {
  const path = headers[":path"] ?? "";
  if (!path.startsWith("/grpc.health.") && !path.startsWith("/grpc.reflection.")) return undefined;
  const contentType = headers["content-type"] ?? "";
  if (!contentType.startsWith("application/grpc")) return { ":status": 503, "retry-after": "1" };
  return {
    ":status": 200,
    "content-type": contentType,
    "grpc-status": String(path.endsWith("/Watch") ? Code.Unimplemented : Code.ResourceExhausted),
    "grpc-message": "too many calls without a key on this connection",
  };
}
