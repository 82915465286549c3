import { type ClientHttp2Session, connect, constants } from "node:http2";
import { Agent, request } from "node:http";

/** An answer, to the byte, or why there is no reliable one. */
export type Reply =
  | { readonly kind: "answer"; readonly body: Buffer; readonly requestId: string; readonly replayed: boolean }
  /** Refused for good. */
  | { readonly kind: "refusal"; readonly status: string; readonly body: Buffer }
  /** No answer, or one that says to retry. */
  | { readonly kind: "failure"; readonly reason: string };

/** Longer than the service takes to give up on its database. */
const patienceMs = 40_000;

const agent = new Agent({ keepAlive: true, maxSockets: 64 });

/** A POST of JSON. */
export function postRest(url: string, path: string, headers: Record<string, string>, body: string): Promise<Reply> {
  return new Promise((resolve) => {
    const fail = (error: Error) => resolve({ kind: "failure", reason: error.message });
    const call = request(
      `${url}${path}`,
      { method: "POST", agent, timeout: patienceMs, headers: { "content-type": "application/json", ...headers } },
      (response) => {
        const chunks: Buffer[] = [];
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("error", fail);
        response.on("end", () => {
          const body = Buffer.concat(chunks);
          const status = response.statusCode ?? 0;
          if (!response.complete) resolve({ kind: "failure", reason: "cut off" });
          else if (status >= 500 || status === 429) resolve({ kind: "failure", reason: String(status) });
          else if (status >= 400) resolve({ kind: "refusal", status: String(status), body });
          else resolve(answer(body, response.headers));
        });
      },
    );
    call.on("timeout", () => call.destroy(new Error("no answer in time")));
    call.on("error", fail);
    call.end(body);
  });
}

const sessions = new Map<string, ClientHttp2Session>();

function sessionOf(url: string): ClientHttp2Session {
  const known = sessions.get(url);
  if (known !== undefined && !known.closed && !known.destroyed) return known;
  const session = connect(url);
  session.on("error", () => {});
  session.on("close", () => sessions.get(url) === session && sessions.delete(url));
  session.unref();
  sessions.set(url, session);
  return session;
}

/** Codes that say nothing about the request: canceled, unknown, deadline exceeded, internal, unavailable. */
const passing = new Set(["1", "2", "4", "13", "14"]);

/** A unary gRPC call; the body is the received message's bytes. */
export function callGrpc(
  url: string,
  path: string,
  headers: Record<string, string>,
  message: Uint8Array,
): Promise<Reply> {
  return new Promise((resolve) => {
    const fail = (reason: string) => resolve({ kind: "failure", reason });
    let seen: Record<string, unknown> = {};
    let trailers: Record<string, unknown> | undefined;
    const chunks: Buffer[] = [];
    const stream = sessionOf(url).request({
      ":method": "POST",
      ":path": path,
      "content-type": "application/grpc+proto",
      te: "trailers",
      ...headers,
    });
    stream.setTimeout(patienceMs, () => stream.close(constants.NGHTTP2_CANCEL));
    stream.on("response", (received) => (seen = received));
    stream.on("trailers", (received) => (trailers = received));
    stream.on("data", (chunk: Buffer) => chunks.push(chunk));
    stream.on("error", (error) => fail(error.message));
    stream.on("close", () => {
      const status = String((trailers ?? seen)["grpc-status"] ?? "none");
      const body = Buffer.concat(chunks);
      if (status === "none" || passing.has(status)) fail(`grpc-status ${status}`);
      else if (status !== "0") resolve({ kind: "refusal", status: `grpc-status ${status}`, body });
      else resolve(answer(body.subarray(5), seen));
    });
    const prefix = Buffer.alloc(5);
    prefix.writeUInt32BE(message.byteLength, 1);
    stream.end(Buffer.concat([prefix, message]));
  });
}

const answer = (body: Buffer, headers: Record<string, unknown>): Reply => ({
  kind: "answer",
  body,
  requestId: String(headers["x-request-id"]),
  replayed: headers["idempotency-replayed"] === "true",
});
