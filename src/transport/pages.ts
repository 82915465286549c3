import { readFileSync } from "node:fs";
import { Code } from "@connectrpc/connect";
import { type ErrorCode, errorTable } from "../errors.ts";
import { Fault } from "../errors.ts";
import type { Route, RouteReply } from "./route.ts";

export interface PagesOptions {
  /** Whether the database can be reached. */
  readonly ready: () => Promise<boolean>;
  readonly publicUrl: string;
}

/** Everything that is not the API: health, the OpenAPI document and the pages about errors. */
export function pageRoutes({ ready, publicUrl }: PagesOptions): Route[] {
  return [
    page("/healthz", () => plain(200, "ok")),
    page("/readyz", async () => ((await ready()) ? plain(200, "ready") : plain(503, "the database cannot be reached"))),
    page("/openapi/v1.yaml", () => ({
      status: 200,
      headers: { "content-type": "application/yaml; charset=utf-8" },
      body: openapi(),
    })),
    page("/docs", () => html("Ingest", indexPage(publicUrl))),
    page("/docs/errors/*", (path) => {
      const code = path.slice("/docs/errors/".length);
      if (!Object.hasOwn(errorTable, code)) throw new Fault("not_found", `There is nothing at '${path}'.`);
      return html(code, errorPage(code as ErrorCode, publicUrl));
    }),
  ];
}

const page = (path: string, answer: (path: string) => RouteReply | Promise<RouteReply>): Route => ({
  method: "GET",
  path,
  rpc: "",
  handle: (request) => answer(request.path),
});

const plain = (status: number, body: string): RouteReply => ({
  status,
  headers: { "content-type": "text/plain; charset=utf-8" },
  body,
});

const html = (title: string, body: string): RouteReply => ({
  status: 200,
  headers: {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
  },
  body: `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>${title} · Ingest</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:46rem;margin:3rem auto;padding:0 1rem}code,pre{background:#8882;border-radius:4px;padding:.1em .3em}pre{padding:1em;overflow:auto}td,th{text-align:left;padding:.2em 1em .2em 0}:root{color-scheme:light dark}</style>
${body}</html>`,
});

let document: string | undefined;
function openapi(): string {
  document ??= readFileSync(new URL("../../openapi/v1.yaml", import.meta.url), "utf8");
  return document;
}

function indexPage(publicUrl: string): string {
  const rows = Object.entries(errorTable)
    .map(
      ([code, { http, when }]) =>
        `<tr><td><a href="/docs/errors/${code}"><code>${code}</code></a><td>${http}<td>${when}`,
    )
    .join("\n");
  return `<h1>Ingest</h1><p>The machine-readable description is <a href="/openapi/v1.yaml">${publicUrl}/openapi/v1.yaml</a>.</p>
<h2>Error codes</h2><table><tr><th>Code<th>HTTP<th>When</tr>${rows}</table>`;
}

function errorPage(code: ErrorCode, publicUrl: string): string {
  const { http, connect, when, remedy, retryable } = errorTable[code];
  const example = JSON.stringify(
    {
      error: {
        code,
        message: when,
        requestId: "req_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
        docsUrl: `${publicUrl}/docs/errors/${code}`,
      },
    },
    undefined,
    2,
  );
  return `<h1><code>${code}</code></h1><p>${when}</p>
<h2>What to do</h2><p>${remedy}</p>
<p><strong>${retryable ? "Retry: yes, the same request, with backoff." : "Retry: no. The same request fails again until the cause is mended."}</strong></p>
<h2>Over the wire</h2><p>HTTP ${http} over REST; <code>${Code[connect]}</code> over Connect and gRPC.</p>
<pre>${example}</pre><p><a href="/docs">All codes</a></p>`;
}
