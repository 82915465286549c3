import { readFile } from "node:fs/promises";
import { type ErrorCode, errorTable } from "../../errors.ts";
import { errorIndexPage, errorPage } from "./errors.ts";
import { limitsPage } from "./limits.ts";
import { referencePage } from "./reference.ts";
import { type Content, contentOf, lazily, replyWith, staticFiles } from "./static.ts";
import type { Route, RouteReply } from "../http/route.ts";

export interface PagesOptions {
  /** Why requests had better go elsewhere; undefined when they may come. */
  readonly whyNotReady: () => Promise<string | undefined>;
  readonly publicUrl: string;
}

/** Everything that is not the API: health, the OpenAPI document and the documentation. */
export function pageRoutes({ whyNotReady, publicUrl }: PagesOptions): Route[] {
  const secure = securityHeaders(publicUrl);
  const document = (text: () => string, policy: string) => () =>
    contentOf(Buffer.from(text()), {
      ...secure,
      "content-type": "text/html; charset=utf-8",
      "content-security-policy": policy,
      "cache-control": "no-cache",
    });
  const files = Object.entries(staticFiles).map(([name, { type, read }]) =>
    content(`/docs/static/${name}`, async () =>
      contentOf(await read(), { ...secure, "content-type": type, "cache-control": "public, max-age=3600" }),
    ),
  );
  const errors = (Object.keys(errorTable) as ErrorCode[]).map((code) =>
    content(
      `/docs/errors/${code}`,
      document(() => errorPage(code, publicUrl), textPolicy),
    ),
  );
  return [
    page("/healthz", () => plain(200, "ok")),
    page("/readyz", async () => {
      const reason = await whyNotReady();
      return reason === undefined ? plain(200, "ready") : plain(503, `not ready: ${reason}`);
    }),
    content("/openapi/v1.yaml", async () =>
      contentOf(await readFile(new URL("../../../openapi/v1.yaml", import.meta.url)), {
        ...secure,
        "content-type": "application/yaml; charset=utf-8",
        "cache-control": "no-cache",
      }),
    ),
    content("/docs", document(referencePage, referencePolicy)),
    content("/docs/errors", document(errorIndexPage, textPolicy)),
    content("/docs/limits", document(limitsPage, textPolicy)),
    ...errors,
    ...files,
  ];
}

/** What pages without a script may load. */
const textPolicy = policy({ "style-src": "'self'", "img-src": "'self'" });

/**
 * Scalar sets styles from its script, and draws icons from data. It sends requests to the service it is served by only.
 * Its styles need 'unsafe-inline': it makes style elements without a nonce, and style attributes, to which no nonce applies.
 */
const referencePolicy = policy({
  "script-src": "'self'",
  "style-src": "'self' 'unsafe-inline'",
  "img-src": "'self' data: blob:",
  "font-src": "'self' data:",
  "connect-src": "'self'",
});

function policy(allowed: Readonly<Record<string, string>>): string {
  const all = {
    "default-src": "'none'",
    ...allowed,
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
  };
  return Object.entries(all)
    .map((entry) => entry.join(" "))
    .join("; ");
}

/** Of everything that a browser may show. Strict transport only where the address is one of TLS. */
const securityHeaders = (publicUrl: string): Readonly<Record<string, string>> => ({
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "x-frame-options": "DENY",
  "cross-origin-opener-policy": "same-origin",
  "permissions-policy": "camera=(), geolocation=(), microphone=()",
  ...(publicUrl.startsWith("https:") ? { "strict-transport-security": "max-age=31536000" } : {}),
});

const page = (path: string, answer: () => RouteReply | Promise<RouteReply>): Route => ({
  method: "GET",
  path,
  rpc: "",
  handle: answer,
});

function content(path: string, make: () => Promise<Content>): Route {
  const get = lazily(make);
  return { method: "GET", path, rpc: "", handle: async (request) => replyWith(await get(), request) };
}

const plain = (status: number, body: string): RouteReply => ({
  status,
  headers: { "content-type": "text/plain; charset=utf-8" },
  body,
});
