import { type ErrorCode, errorTable, type Fault } from "../../errors.ts";
import { readComments } from "../../proto-comments.ts";
import type { Route, RouteReply, RouteRequest } from "../http/route.ts";
import { adminPage } from "./admin.ts";
import { errorIndexPage, errorPage } from "./errors.ts";
import { grpcPage } from "./grpc.ts";
import { guidePages } from "./guides.ts";
import { notFoundPage, relative } from "./layout.ts";
import { limitsPage } from "./limits.ts";
import { type DocumentName, readOpenApi, servedOpenApi } from "./openapi.ts";
import { referencePage } from "./reference.ts";
import { type Content, contentOf, lazily, replyWith, staticFiles } from "./static.ts";

/** @param whyNotReady gives the reason why the instance is not ready, or undefined. */
export const probeRoutes = (whyNotReady: () => Promise<string | undefined>): Route[] => [
  page("/healthz", () => textReply(200, "ok\n")),
  page("/readyz", async () => {
    const reason = await whyNotReady();
    return reason === undefined ? textReply(200, "ready\n") : textReply(503, `not ready: ${reason}\n`);
  }),
];

/** Where the pages are. */
export interface PagePlaces {
  /** Of ingest.v1. */
  readonly publicUrl: string;
  /** The address of administration on this port; undefined if this port does not serve it. */
  readonly adminUrl: string | undefined;
}

export function pageRoutes({ publicUrl, adminUrl }: PagePlaces): Route[] {
  // On the port for operators, the forms could not reach the public port.
  const isPublic = adminUrl === undefined || adminUrl === publicUrl;
  const secure = securityHeaders(publicUrl);
  const codes = Object.keys(errorTable) as ErrorCode[];
  const documents: Readonly<Record<string, () => string | Promise<string>>> = {
    "/docs": async () => referencePage(await readOpenApi("v1"), publicUrl, isPublic),
    "/docs/grpc": async () => grpcPage(await readComments(), publicUrl),
    "/docs/admin": async () => adminPage(await readOpenApi("admin.v1"), adminUrl),
    "/docs/errors": errorIndexPage,
    "/docs/limits": limitsPage,
    ...Object.fromEntries(Object.entries(guidePages).map(([path, make]) => [path, () => make(publicUrl)])),
    ...Object.fromEntries(codes.map((code) => [`/docs/errors/${code}`, () => errorPage(code, publicUrl)])),
  };
  const described: readonly (readonly [DocumentName, string])[] = [
    ["v1", publicUrl],
    ...(adminUrl === undefined ? [] : [["admin.v1", adminUrl] as const]),
  ];
  const openapi = described.flatMap(([name, url]) =>
    (["yaml", "json"] as const).map((format) =>
      content(`/openapi/${name}.${format}`, async () =>
        contentOf(Buffer.from(await servedOpenApi(name, format, url, publicUrl)), {
          ...secure,
          "content-type": `application/${format}; charset=utf-8`,
          "cache-control": "no-cache",
        }),
      ),
    ),
  );
  const files = Object.entries(staticFiles).map(([name, { type, read }]) =>
    content(`/docs/static/${name}`, async () =>
      contentOf(await read(), { ...secure, "content-type": type, "cache-control": "public, max-age=3600" }),
    ),
  );
  const moved = [
    ["/", isPublic ? "/docs" : "/docs/admin"],
    ...Object.keys(documents).map((path) => [`${path}/`, path]),
  ] as [string, string][];
  return [
    ...openapi,
    ...Object.entries(documents).map(([path, make]) =>
      content(path, async () => contentOf(Buffer.from(await make()), { ...secure, ...ofDocuments })),
    ),
    ...files,
    // Relative redirects work behind a proxy that puts the service below a path.
    ...moved.map(([from, to]) =>
      page(from, () => ({ ...textReply(308, ""), headers: { location: relative(from, to) } })),
    ),
  ];
}

/** A browser that opens an unknown path gets a page instead of a JSON error. */
export function refusalPage(
  publicUrl: string,
): (request: Pick<RouteRequest, "start" | "headers">, fault: Fault) => RouteReply | undefined {
  const headers = { ...securityHeaders(publicUrl), ...ofDocuments, vary: "accept, origin" };
  return ({ start: { method, path, rpc }, headers: { accept } }, { code, definition }) =>
    rpc === "" && code === "not_found" && (method === "GET" || method === "HEAD") && accept?.includes("text/html")
      ? { status: definition.http, headers, body: notFoundPage(path) }
      : undefined;
}

/** The pages may load only the service's own files, and nothing inline. */
const policy = Object.entries({
  "default-src": "'none'",
  "script-src": "'self'",
  "style-src": "'self'",
  "img-src": "'self'",
  "connect-src": "'self'",
  "base-uri": "'none'",
  "form-action": "'none'",
  "frame-ancestors": "'none'",
})
  .map((entry) => entry.join(" "))
  .join("; ");

const ofDocuments = {
  "content-type": "text/html; charset=utf-8",
  "content-security-policy": policy,
  "cache-control": "no-cache",
};

/** Headers of everything that a browser may show. Strict-Transport-Security needs an https address. */
export const securityHeaders = (publicUrl: string): Readonly<Record<string, string>> => ({
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "x-frame-options": "DENY",
  "cross-origin-opener-policy": "same-origin",
  "permissions-policy": "camera=(), geolocation=(), microphone=()",
  ...(publicUrl.startsWith("https:") ? { "strict-transport-security": "max-age=31536000" } : {}),
});

export const page = (path: string, answer: () => RouteReply | Promise<RouteReply>): Route => ({
  method: "GET",
  path,
  rpc: "",
  handle: answer,
});

export function content(path: string, make: () => Promise<Content>): Route {
  const get = lazily(make);
  return { method: "GET", path, rpc: "", handle: async (request) => replyWith(await get(), request) };
}

export const textReply = (status: number, body: string): RouteReply => ({
  status,
  headers: { "content-type": "text/plain; charset=utf-8" },
  body,
});
