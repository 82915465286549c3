import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { promisify } from "node:util";
import { gzip } from "node:zlib";
import type { RouteReply, RouteRequest } from "../http/route.ts";

/** Content that is the same for every caller until the process ends. */
export interface Content {
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Uint8Array;
  readonly etag: string;
  /** Undefined if compression gains little. */
  readonly gzipped: Uint8Array | undefined;
}

const compress = promisify(gzip);
/** Compression of a smaller body saves no packet. */
const gzipBytesMin = 1_400;

export async function contentOf(body: Uint8Array, headers: Readonly<Record<string, string>>): Promise<Content> {
  const etag = `"${createHash("sha256").update(body).digest("base64url").slice(0, 22)}"`;
  return { headers, body, etag, gzipped: body.byteLength < gzipBytesMin ? undefined : await compress(body) };
}

/** Answers plain or compressed, as the request asks, or 304 if the caller already has the content. */
export function replyWith({ headers, body, etag, gzipped }: Content, request: RouteRequest): RouteReply {
  const varying = { ...headers, etag, vary: "accept-encoding, origin" };
  const known = request.headers["if-none-match"]?.split(",").map((tag) => tag.trim().replace(/^W\//, ""));
  if (known?.includes(etag) || known?.includes("*")) return { status: 304, headers: varying, body: "" };
  const takesGzip = /\bgzip\b(?!\s*;\s*q=0(\.0+)?\s*(,|$))/.test(String(request.headers["accept-encoding"] ?? ""));
  if (gzipped === undefined || !takesGzip) return { status: 200, headers: varying, body };
  return { status: 200, headers: { ...varying, "content-encoding": "gzip" }, body: gzipped };
}

/** Makes the content once, on the first request. After a failure, the next request tries again. */
export function lazily(make: () => Promise<Content>): () => Promise<Content> {
  let content: Promise<Content> | undefined;
  return () => {
    content ??= make().catch((error: unknown) => {
      content = undefined;
      throw error;
    });
    return content;
  };
}

const besides = (name: string) => new URL(`./static/${name}`, import.meta.url);

export const staticFiles: Readonly<
  Record<string, { readonly type: string; readonly read: () => Promise<Uint8Array> }>
> = {
  "style.css": { type: "text/css; charset=utf-8", read: () => readFile(besides("style.css")) },
  "icon.svg": { type: "image/svg+xml", read: () => readFile(besides("icon.svg")) },
  "docs.js": { type: "text/javascript; charset=utf-8", read: () => readFile(besides("docs.js")) },
};
