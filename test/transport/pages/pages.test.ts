import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parse } from "yaml";
import { type ErrorCode, errorTable } from "../../../src/errors.ts";
import { Admin } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { answerHeaderTable } from "../../../src/headers.ts";
import { limitTable, timelineLimitTable } from "../../../src/limits.ts";
import { html, inline } from "../../../src/transport/pages/html.ts";
import { reactions } from "../../../src/transport/pages/reactions.ts";
import { insertToken } from "../../support/admin.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../../support/service.ts";
import { findTool, toolsPath } from "../../support/tools.ts";

const run = promisify(execFile);

let service: TestService;
let tenant: Tenant;
let url: string;
let readKey: string;
let accessToken: string;
beforeAll(async () => {
  service = await startService();
  url = service.app.url;
  tenant = await createTenant(service.admin);
  ({ key: readKey } = await service.admin.createKey(tenant.appId, undefined, "read"));
  ({ token: accessToken } = await insertToken(service, "operator"));
});
afterAll(() => service.app.close());

const get = (path: string, headers: Record<string, string> = {}) => fetch(`${url}${path}`, { headers });
const codes = Object.keys(errorTable) as ErrorCode[];
const textPages = [
  "/docs",
  ...["quickstart", "authentication", "retries", "timeline", "grpc", "admin", "errors", "limits"].map(
    (name) => `/docs/${name}`,
  ),
  ...codes.map((code) => `/docs/errors/${code}`),
];
const files = ["style.css", "icon.svg", "docs.js"].map((name) => `/docs/static/${name}`);
const documents = ["v1", "admin.v1"].flatMap((name) => [`/openapi/${name}.yaml`, `/openapi/${name}.json`]);

const unescaped = (text: string) =>
  text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&#39;", "'")
    .replaceAll("&amp;", "&");

describe("pages", () => {
  test("a page escapes every value except HTML", () => {
    const nasty = `<script>alert("1" + '2' & 3)</script>`;
    const escaped = "&lt;script&gt;alert(&quot;1&quot; + &#39;2&#39; &amp; 3)&lt;/script&gt;";
    expect(html`<p title="${nasty}">${nasty}${[html`<b>${nasty}</b>`]}</p>`.text).toBe(
      `<p title="${escaped}">${escaped}<b>${escaped}</b></p>`,
    );
    expect(html`${inline("a `<b>` c")}`.text).toBe("a <code>&lt;b&gt;</code> c");
  });

  /** Every address that is reachable from `base` by links, resolved as in a browser. */
  async function crawl(base: string): Promise<string[]> {
    const open = [`${base}/docs`];
    const seen = new Set(open);
    for (let page = open.pop(); page !== undefined; page = open.pop()) {
      const response = await fetch(page);
      expect(response.status, page).toBe(200);
      const text = await response.text();
      if (!response.headers.get("content-type")?.startsWith("text/html")) continue;
      for (const [, target = ""] of text.matchAll(/ (?:href|src|action)="([^"]*)"/g)) {
        const address = new URL(target, page);
        const anchor = decodeURIComponent(address.hash.slice(1));
        if (target.startsWith("#")) expect(text, `${page}${target}`).toContain(`id="${anchor}"`);
        address.hash = "";
        if (!seen.has(address.href) && !address.pathname.includes("/api/v1/")) open.push(address.href);
        seen.add(address.href);
      }
    }
    return [...seen].map((address) => address.slice(base.length));
  }
  const apiPaths = ["ingest/ping", "ingest/events", "ingest/snapshots"].concat(
    ["events", "snapshots", "events:watch"].map((name) => `timeline/${name}`),
  );
  const everything = [...textPages, ...files, ...documents, ...apiPaths.map((path) => `/api/v1/${path}`)].sort();

  test("every link and loaded file of every page exists, and none is on another host", async () => {
    expect((await crawl(url)).sort()).toEqual(everything);
  });

  test("with a path in PUBLIC_URL, behind a proxy that strips it, every link works", async () => {
    const proxy = createServer(async ({ url: path = "", headers: { accept } }, response) => {
      if (!path.startsWith("/monitor/")) return void response.writeHead(502).end();
      const target = `${behind.app.url}${path.slice("/monitor".length)}`;
      const answer = await fetch(target, { headers: accept === undefined ? {} : { accept }, redirect: "manual" });
      const { "content-encoding": _, "content-length": _length, ...headers } = Object.fromEntries(answer.headers);
      response.writeHead(answer.status, headers).end(Buffer.from(await answer.arrayBuffer()));
    });
    proxy.listen(0, "localhost");
    await once(proxy, "listening");
    const base = `http://localhost:${(proxy.address() as AddressInfo).port}/monitor`;
    const behind = await startService({ env: { PUBLIC_URL: `${base}/` } });
    try {
      expect((await crawl(base)).sort()).toEqual(everything);
      const home = await fetch(`${base}/`);
      expect([home.status, home.url]).toEqual([200, `${base}/docs`]);
      const slash = await fetch(`${base}/docs/errors/invalid_key/`);
      expect([slash.status, slash.url]).toEqual([200, `${base}/docs/errors/invalid_key`]);
      const document = (await (await fetch(`${base}/openapi/v1.json`)).json()) as { servers: unknown };
      expect(document.servers).toEqual([{ url: base }]);
      expect(JSON.stringify(document)).not.toContain("](/");
      const yaml = parse(await (await fetch(`${base}/openapi/v1.yaml`)).text()) as unknown;
      expect(yaml).toEqual(document);
    } finally {
      await behind.app.close();
      proxy.close();
    }
  });

  test("the port for operators has every page, and leads to that of administration", async () => {
    const { adminUrl } = service.app;
    expect((await crawl(adminUrl)).filter((path) => !path.startsWith("/api/")).sort()).toEqual(
      everything.filter((path) => !path.startsWith("/api/")),
    );
    const home = await fetch(`${adminUrl}/`);
    expect(home.url).toBe(`${adminUrl}/docs/admin`);
    expect(await home.text()).toContain(`${adminUrl}/api/v1/admin/organizations`);
    expect(await (await fetch(`${adminUrl}/docs`)).text()).not.toContain('class="try"');
  });

  test("a public port that does not serve administration names no address of it", async () => {
    const closed = await startService({ env: { HOST: "0.0.0.0" } });
    try {
      const page = await fetch(`${closed.app.url}/docs/admin`);
      expect(page.status).toBe(200);
      const text = await page.text();
      expect(text).toContain("$INGEST_URL/api/v1/admin/organizations");
      expect(text).not.toContain(new URL(closed.app.adminUrl).port);
      for (const path of ["/openapi/admin.v1.yaml", "/api/v1/admin/whoami"])
        expect((await fetch(`${closed.app.url}${path}`)).status).toBe(404);
    } finally {
      await closed.app.close();
    }
  });

  test("a browser may run only our own files, and may not frame a page", async () => {
    for (const path of [...textPages, "/nope"]) {
      const { headers } = await get(path, { accept: "text/html" });
      const policy = headers.get("content-security-policy") as string;
      expect(policy).toMatch(/^default-src 'none'; script-src 'self'; style-src 'self'; /);
      expect(policy).toContain("frame-ancestors 'none'");
      expect(policy).not.toContain("unsafe");
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("referrer-policy")).toBe("no-referrer");
      expect(headers.get("strict-transport-security")).toBeNull();
    }
  });

  test("/ and a trailing slash lead to the page", async () => {
    for (const path of ["/", ...textPages.map((path) => `${path}/`)]) {
      const response = await get(path);
      const page = path === "/" ? "/docs" : path.slice(0, -1);
      expect([response.status, response.url, response.redirected]).toEqual([200, `${url}${page}`, true]);
    }
  });

  test("a browser at an unknown address gets a page; every other caller gets the error", async () => {
    for (const path of ["/nope", "/docs/errors/nope", "/api/v1/nope", "/docs/<script>", "/a//b/"]) {
      const shown = await get(path, { accept: "text/html,application/xhtml+xml,*/*;q=0.8" });
      expect([shown.status, shown.headers.get("content-type")]).toEqual([404, "text/html; charset=utf-8"]);
      const text = await shown.text();
      expect(text).toContain("Page not found");
      expect(text).not.toContain("<script>");
      const [, style = ""] = /rel="stylesheet" href="([^"]*)"/.exec(text) ?? [];
      expect(new URL(style, shown.url).pathname).toBe("/docs/static/style.css");
      for (const accept of ["application/json", "*/*"]) {
        const refused = await get(path, { accept });
        expect([refused.status, ((await refused.json()) as any).error.code]).toEqual([404, "not_found"]);
      }
    }
    const posted = await fetch(`${url}/nope`, { method: "POST", headers: { accept: "text/html" } });
    expect(((await posted.json()) as any).error.code).toBe("not_found");
  });

  test("no page mentions internals", async () => {
    for (const path of [...textPages, ...documents]) {
      const text = await (await get(path)).text();
      expect(text, path).not.toMatch(/zod|developer tab|published reference|not in the reference|right reaction/i);
    }
  });

  test("/docs/grpc has the schema's comments on every RPC, message, field and value", async () => {
    const text = (await (await get("/docs/grpc")).text()).replaceAll(/<[^>]*>/g, "");
    const plain = unescaped(text).replaceAll(/\s+/g, " ");
    for (const name of ["ingest", "timeline"]) {
      const proto = readFileSync(new URL(`../../../proto/ingest/v1/${name}.proto`, import.meta.url), "utf8");
      const [, body = ""] = proto.split("package ingest.v1;");
      const comments = body.match(/(?:^ *\/\/.*\n)+/gm) ?? [];
      expect(comments.length).toBeGreaterThan(50);
      for (const comment of comments)
        for (const paragraph of comment.replaceAll(/^ *\/\/ ?/gm, "").split(/\n\s*\n/))
          expect(plain).toContain(paragraph.replaceAll("`", "").replaceAll(/\s+/g, " ").trim());
    }
  });

  test("Strict-Transport-Security is sent if the service's address uses TLS", async () => {
    const secure = await startService({ env: { PUBLIC_URL: "https://ingest.example/" } });
    try {
      const { headers } = await fetch(`${secure.app.url}/docs/errors`);
      expect(headers.get("strict-transport-security")).toBe("max-age=31536000");
    } finally {
      await secure.app.close();
    }
  });

  test.each(["/docs", "/docs/errors/invalid_key", ...documents, ...files])(
    "%s is cached: a caller that has it gets 304, and it may be compressed",
    async (path) => {
      const first = await get(path, { "accept-encoding": "identity" });
      expect(first.headers.get("cache-control")).toMatch(/^(no-cache|public, max-age=3600)$/);
      const etag = first.headers.get("etag") as string;
      for (const known of [etag, `W/${etag}`, `"other", ${etag}`, "*"]) {
        const again = await get(path, { "if-none-match": known });
        expect([again.status, await again.text(), again.headers.get("etag")]).toEqual([304, "", etag]);
      }
      expect((await get(path, { "if-none-match": '"other"' })).status).toBe(200);
      const compressed = await get(path, { "accept-encoding": "gzip" });
      expect(await compressed.text()).toBe(await first.text());
    },
  );

  test("an unknown path below /docs is not_found, in the form of every error", async () => {
    for (const path of [
      "/docs/errors/out_of_coffee",
      "/docs/errors/__proto__",
      "/docs/static/../pages.ts",
      "/docs/x",
    ]) {
      const response = await get(path);
      expect(response.status).toBe(404);
      expect(((await response.json()) as { error: { code: string } }).error.code).toBe("not_found");
    }
  });

  test("the limits page has every limit and every header", async () => {
    const text = unescaped(await (await get("/docs/limits")).text()).replaceAll("\u202f", "");
    for (const { value, unit } of [...Object.values(limitTable), ...Object.values(timelineLimitTable)]) {
      expect(text).toContain(`<b>${value}</b> ${unit}`);
    }
    for (const { name } of Object.values(answerHeaderTable)) expect(text).toContain(`<code>${name}</code>`);
  });
});

/** Programs run with the tenant's keys and an access token, and find the tools of `.ci/tools`. */
const env = () => ({
  ...process.env,
  INGEST_URL: service.app.adminUrl,
  INGEST_TOKEN: accessToken,
  WEPEOPLE_API_KEY: tenant.key,
  WEPEOPLE_READ_KEY: readKey,
  PATH: toolsPath,
});

describe("the page about an error", () => {
  test.each(codes)(
    "%s says what happened and whether to retry, and shows the error and an example fix",
    async (code) => {
      const page = await (await get(`/docs/errors/${code}`)).text();
      const text = unescaped(page.replaceAll(/<\/?i\b[^>]*>/g, ""));
      const { http, when, remedy, retryable, example } = errorTable[code];
      const { rest, grpc } = reactions[code](url);
      expect(text.replaceAll(/<\/?code>/g, "`")).toContain(remedy);
      for (const part of [when, `HTTP ${http}`, retryable ? "Retryable:" : "Not retryable", rest, grpc]) {
        expect(text).toContain(part);
      }
      const [, body = ""] = /<pre tabindex="0"><code>HTTP \d+\n[^]*?\n\n([^]*?)<\/code>/.exec(text) ?? [];
      const requestId = answerHeaderTable["x-request-id"].example;
      expect(JSON.parse(body)).toEqual({
        error: { code, message: example, requestId, docsUrl: `${url}/docs/errors/${code}` },
      });
      expect(text).toContain(`"reason": "${code}"`);
    },
  );

  const shell = (command: string) => run("bash", ["-euo", "pipefail", "-c", command], { env: env() });

  test("each example fix works over REST, unchanged, with real curl", async () => {
    const answers = await Promise.all(
      codes.map(async (code) => [code, await shell(reactions[code](url).rest)] as const),
    );
    for (const [code, { stdout }] of answers)
      expect(stdout, code).toMatch(/^\{"(ok|requestId|events|organizations)":|^openapi: 3/m);
  });

  test("each example fix works over gRPC, unchanged, with real grpcurl", async ({ skip }) => {
    await shell("command -v grpcurl").catch(() => skip("grpcurl is not installed"));
    const answers = await Promise.all(
      codes.map(async (code) => [code, await shell(reactions[code](url).grpc)] as const),
    );
    for (const [code, { stdout }] of answers) expect(stdout, code).toMatch(/"(ok|requestId|events|organizations)":/);
  });
});

const executablePath =
  process.env.CHROMIUM ?? ["chromium", "chromium-browser", "google-chrome"].map(findTool).find(Boolean);

describe.skipIf(executablePath === undefined)(
  "in Chromium (skipped without it; CHROMIUM sets its path)",
  () => {
    const screenshots = join(import.meta.dirname, "../../screenshots");
    let browser: Browser;
    /** Shared, because a new page takes Chromium a second of work, and a visit less than half of that. */
    let page: Page;
    /** Errors, and requests to other hosts, since the visit began. */
    let trouble: string[];
    beforeAll(async () => {
      await mkdir(screenshots, { recursive: true });
      browser = await chromium.launch({ executablePath: executablePath as string, args: ["--no-sandbox"] });
      page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
      page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warning") trouble.push(message.text());
      });
      page.on("pageerror", (error) => trouble.push(error.message));
      page.on("request", (request) => {
        const { protocol, origin } = new URL(request.url());
        if (protocol !== "data:" && protocol !== "blob:" && origin !== url) trouble.push(`request to ${origin}`);
      });
      page.on("response", (response) => {
        if (response.status() >= 400) trouble.push(`${response.status()} ${response.url()}`);
      });
    });
    beforeEach(() => void (trouble = []));
    afterAll(() => browser.close());

    /** Opens the page with access only to the service, and stores a screenshot in test/screenshots. */
    async function visit(name: string, path: string, work: () => Promise<void>): Promise<void> {
      await page.goto(`${url}${path}`);
      await work();
      for (const colorScheme of ["dark", "light"] as const) {
        await page.emulateMedia({ colorScheme });
        await page.screenshot({ path: join(screenshots, `${name}-${colorScheme}.png`) });
      }
      expect(trouble).toEqual([]);
    }

    const headings = () => page.getByRole("heading", { level: 2 }).allInnerTexts();

    test("/docs shows every call of the document, without errors or requests to other hosts", async () => {
      await visit("docs", "/docs", async () => {
        await page.getByRole("heading", { level: 1, name: "Ingest API" }).waitFor();
        const names = ["Ping", "Ingest events", "Ingest snapshot", "List events", "List snapshots", "Watch events"];
        expect(await headings()).toEqual(expect.arrayContaining(names));
      });
    });

    test("/docs/admin shows every RPC of administration", async () => {
      await visit("admin", "/docs/admin", async () => {
        expect(await headings()).toEqual(expect.arrayContaining(Admin.methods.map(({ name }) => name)));
      });
    });

    const rows = async () => {
      const { events } = (await (await get("/api/v1/timeline/events?pageSize=500", bearer(readKey))).json()) as {
        events: unknown[];
      };
      return events.length;
    };

    /** The samples of a page as the reader sees them, by language. */
    async function shown(path: string): Promise<{ label: string; text: string }[]> {
      await page.goto(`${url}${path}`);
      const found: { label: string; text: string }[] = [];
      for (const samples of await page.locator(".samples").all())
        for (const tab of await samples.locator(".tabs button").all()) {
          await tab.click();
          const text = await samples.locator("figure:visible code").innerText();
          found.push({ label: await tab.innerText(), text });
        }
      return found;
    }

    const tools: Readonly<Record<string, (file: string) => readonly string[]>> = {
      curl: (file) => ["bash", "-euo", "pipefail", file],
      JavaScript: (file) => [process.execPath, file],
      Python: (file) => ["python3", file],
      Go: (file) => ["go", "run", file],
    };
    const endings: Readonly<Record<string, string>> = { curl: "sh", JavaScript: "mjs", Python: "py", Go: "go" };

    test.each(["/docs", "/docs/quickstart", "/docs/retries", "/docs/timeline"])(
      "every snippet of %s runs unchanged, and its event is stored",
      async (path) => {
        const directory = await mkdtemp(join(tmpdir(), "ingest-snippets-"));
        try {
          const snippets = await shown(path);
          expect(snippets.length).toBeGreaterThan(1);
          for (const [i, { label, text }] of snippets.entries()) {
            // Go programs take seconds to compile and are all alike, so run only one that stores, once.
            const stores = text.includes("ticket");
            if (label === "Go" && !(stores && path === "/docs")) continue;
            const file = join(directory, `${i}.${endings[label]}`);
            await writeFile(file, text);
            const before = await rows();
            const [tool = "", ...args] = tools[label]?.(file) ?? [];
            const output = await outputOf(tool, args, text.includes(":watch"));
            expect(output, text).toMatch(/["']?(ok|requestId|events|resumeToken)["']?:|ticket/);
            expect(output, text).not.toMatch(/"?error"?:/);
            expect((await rows()) - before, text).toBe(stores ? 1 : 0);
          }
        } finally {
          await rm(directory, { recursive: true, force: true });
        }
      },
    );

    /** The program's output. A stream never ends, so its program is stopped after the first message. */
    async function outputOf(tool: string, args: readonly string[], isStream: boolean): Promise<string> {
      if (!isStream) return (await run(tool, args, { env: env() })).stdout;
      const child = spawn(tool, args, { env: env(), stdio: ["ignore", "pipe", "ignore"], detached: true });
      try {
        const [first] = (await once(child.stdout, "data")) as [Buffer];
        return first.toString();
      } finally {
        process.kill(-(child.pid as number));
        await once(child, "exit");
      }
    }

    test("the form of a call sends the shown request, which is stored", async () => {
      await visit("try", "/docs", async () => {
        for (const call of ["ingestEvents", "ingestSnapshot"]) {
          const form = page.locator(`section[aria-labelledby="${call}"] .try`);
          await form.locator("summary").click();
          await form.getByLabel("API key").fill(tenant.key);
          const before = await rows();
          await form.getByRole("button", { name: "Send" }).click();
          await form.getByText("HTTP 202").waitFor();
          expect((await form.locator("pre").innerText()).startsWith("{")).toBe(true);
          expect((await rows()) - before).toBe(1);
        }
      });
    });

    test("the theme is one choice for all pages, and a copy button copies the shown text", async () => {
      const context = await browser.newContext({ colorScheme: "light" });
      await context.grantPermissions(["clipboard-read", "clipboard-write"], { origin: url });
      const page = await context.newPage();
      const isDark = () => page.evaluate("getComputedStyle(document.body).backgroundColor === 'rgb(15, 20, 27)'");
      await page.goto(`${url}/docs`);
      expect(await isDark()).toBe(false);
      await page.getByRole("button", { name: "Theme: system" }).click();
      await page.getByRole("button", { name: "Theme: light" }).click();
      expect(await isDark()).toBe(true);
      await page.goto(`${url}/docs/errors/invalid_key`);
      expect(await isDark()).toBe(true);
      await page.getByRole("button", { name: "Copy this code" }).first().click();
      await page.getByText("Copied", { exact: true }).waitFor();
      expect(await page.evaluate("navigator.clipboard.readText()")).toBe("ingest key create --app app_…");
      await context.close();
    });

    test("at a width of 400 pixels nothing is cut off, and the menu opens", async () => {
      await page.setViewportSize({ width: 400, height: 800 });
      for (const path of textPages) {
        await page.goto(`${url}${path}`);
        // Code scrolls within its box; everything else must fit.
        const outside = `[...document.querySelectorAll("main *:not(pre, pre *)")].filter((one) =>
          one.getBoundingClientRect().right > 400 && one.checkVisibility()).map((one) => one.outerHTML.slice(0, 80))`;
        expect(await page.evaluate(outside), path).toEqual([]);
        expect(await page.evaluate("document.documentElement.scrollWidth"), path).toBe(400);
      }
      await page.getByRole("button", { name: "Menu" }).click();
      await page.getByRole("link", { name: "Quickstart" }).click();
      await page.getByRole("heading", { level: 1, name: "Quickstart" }).waitFor();
      await page.setViewportSize({ width: 1280, height: 900 });
    });

    test("the page of a docsUrl opens, without errors or requests to other hosts", async () => {
      const response = await get("/api/v1/ingest/ping");
      const { error } = (await response.json()) as { error: { docsUrl: string } };
      await visit("error", new URL(error.docsUrl).pathname, async () => {
        expect(await page.getByRole("heading", { level: 1 }).textContent()).toBe("missing_authorization");
        expect(await page.locator(".facts .no").isVisible()).toBe(true);
        // The policy allowed the style sheet.
        expect(await page.evaluate("getComputedStyle(document.querySelector('pre')).overflowX")).toBe("auto");
      });
    });
  },
  240_000,
);
