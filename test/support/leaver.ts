import { request } from "node:http";
import { connect, constants } from "node:http2";

/** A call whose caller gives up. */
export interface Leaver {
  /** Leaves without waiting for the answer. */
  leave(): void;
}

/** Begins a call; `:method` and `:path` are named as in HTTP/2. */
type Begin = (url: string, headers: Readonly<Record<string, string>>, body?: Buffer) => Leaver;

const overHttp1: Begin = (url, { ":method": method = "POST", ":path": path = "/", ...headers }, body) => {
  const length = body === undefined ? {} : { "content-length": body.length };
  const call = request(url + path, { method, headers: { ...headers, ...length }, agent: false });
  call.on("error", () => {}).end(body);
  return {
    leave() {
      // A caller that only ends its side may still read its answer.
      call.socket?.resetAndDestroy();
      call.destroy();
    },
  };
};

const overHttp2: Begin = (url, headers, body) => {
  const session = connect(url).on("error", () => {});
  const stream = session.request({ ":method": "POST", ...headers }, { endStream: body === undefined });
  stream.on("error", () => {}).resume();
  if (body !== undefined) stream.end(body);
  return {
    leave() {
      stream.close(constants.NGHTTP2_CANCEL);
      session.destroy();
    },
  };
};

export const leaverVersions: Readonly<Record<"HTTP/1.1" | "HTTP/2", Begin>> = {
  "HTTP/1.1": overHttp1,
  "HTTP/2": overHttp2,
};
