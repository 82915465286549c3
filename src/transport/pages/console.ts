import { existsSync, readdirSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { extname } from "node:path";
import type { Route } from "../http/route.ts";
import { content, page, securityHeaders, textReply } from "./routes.ts";
import { contentOf } from "./static.ts";

/** Where `npm run build` puts the console, seen from src and from dist alike. */
const folder = new URL("../../../console/dist/", import.meta.url);

const types: Readonly<Record<string, string>> = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
};

/** How people sign in to the console at an OIDC issuer. */
export interface ConsoleOidc {
  readonly issuer: string;
  readonly clientId: string;
  readonly audience: string;
  readonly scope: string;
}

export interface ConsoleOptions {
  /** The address of the ingest API; the port for operators does not serve it. */
  readonly publicUrl: string;
  /** Whether this listener serves the ingest API, too. */
  readonly isPublic: boolean;
  readonly oidc: ConsoleOidc | undefined;
}

/** The console at `/console/`, as it was built; none if it was not. The hash of its address names the screen. */
export function consoleRoutes({ publicUrl, isPublic, oidc }: ConsoleOptions): Route[] {
  if (!existsSync(folder)) return [];
  const others = [...(isPublic ? [] : [publicUrl]), ...(oidc === undefined ? [] : [oidc.issuer])];
  const secure = { ...securityHeaders(publicUrl), "content-security-policy": policyOf(others) };
  const settings = {
    ingestUrl: isPublic ? "" : publicUrl,
    ...(oidc === undefined ? {} : { oidc: { ...oidc, usesIdToken: oidc.clientId === oidc.audience } }),
  };
  const files = readdirSync(folder, { recursive: true, encoding: "utf8" }).filter((name) => extname(name) !== "");
  return [
    page("/console", () => ({ ...textReply(308, ""), headers: { location: "console/" } })),
    page("/console/settings.json", () => ({
      status: 200,
      headers: { ...secure, "cache-control": "no-store" },
      body: JSON.stringify(settings),
    })),
    ...files.map((name) => {
      const path = name === "index.html" ? "/console/" : `/console/${name.replaceAll("\\", "/")}`;
      // A built asset's name has its hash, so it never changes.
      const cache = name.startsWith("assets") ? "public, max-age=31536000, immutable" : "no-cache";
      const headers = {
        ...secure,
        "content-type": types[extname(name)] ?? "application/octet-stream",
        "cache-control": cache,
      };
      return content(path, async () => contentOf(await readFile(new URL(name, folder)), headers));
    }),
  ];
}

/** The console loads only its own files, and calls only this service and these addresses. */
const policyOf = (others: readonly string[]): string =>
  [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    ["connect-src 'self'", ...others.map((address) => new URL(address).origin)].join(" "),
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ].join("; ");
