import type { IncomingHttpHeaders, OutgoingHttpHeaders } from "node:http2";
import { Code } from "@connectrpc/connect";

/**
 * The refusal of a health or reflection call when there are too many keyless calls; undefined for every other call.
 *
 * It refuses health watches as UNIMPLEMENTED. Clients that balance by health treat any other code as an unhealthy server,
 * and fail their calls. With this code they continue without a watch.
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
