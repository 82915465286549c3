import { execFile } from "node:child_process";
import { access, mkdir } from "node:fs/promises";
import { homedir } from "node:os";
import { delimiter, join } from "node:path";
import { promisify } from "node:util";
import { type Browser, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { type ErrorCode, errorTable } from "../../../src/errors.ts";
import { answerHeaderTable } from "../../../src/headers.ts";
import { limitTable, timelineLimitTable } from "../../../src/limits.ts";
import { html, inline } from "../../../src/transport/pages/html.ts";
import { reactions } from "../../../src/transport/pages/reactions.ts";
import { createTenant, startService, type Tenant, type TestService } from "../../support/service.ts";

const run = promisify(execFile);

let service: TestService;
let tenant: Tenant;
let url: string;
let readKey: string;
beforeAll(async () => {
  service = await startService();
  url = service.app.url;
  tenant = await createTenant(service.admin);
  ({ key: readKey } = await service.admin.createKey(tenant.appId, undefined, "read"));
});
afterAll(() => service.app.close());

const get = (path: string, headers: Record<string, string> = {}) => fetch(`${url}${path}`, { headers });
const codes = Object.keys(errorTable) as ErrorCode[];
const textPages = ["/docs/errors", "/docs/limits", ...codes.map((code) => `/docs/errors/${code}`)];
const files = ["style.css", "icon.svg", "reference.js", "scalar.js"].map((name) => `/docs/static/${name}`);

const unescaped = (text: string) =>
  text
    .replaceAll("&lt;", "<")
    .replaceAll("&gt;", ">")
    .replaceAll("&quot;", '"')
    .replaceAll("&#39;", "'")
    .replaceAll("&amp;", "&");

describe("pages", () => {
  test("whatever is put into a page is escaped, unless it is HTML", () => {
    const nasty = `<script>alert("1" + '2' & 3)</script>`;
    const escaped = "&lt;script&gt;alert(&quot;1&quot; + &#39;2&#39; &amp; 3)&lt;/script&gt;";
    expect(html`<p title="${nasty}">${nasty}${[html`<b>${nasty}</b>`]}</p>`.text).toBe(
      `<p title="${escaped}">${escaped}<b>${escaped}</b></p>`,
    );
    expect(html`${inline("a `<b>` c")}`.text).toBe("a <code>&lt;b&gt;</code> c");
  });

  test("every link and every loaded file of every page is there, and none is on another host", async () => {
    const open = ["/docs"];
    const seen = new Set(open);
    for (let path = open.pop(); path !== undefined; path = open.pop()) {
      const response = await get(path);
      expect(response.status, path).toBe(200);
      const text = await response.text();
      if (!response.headers.get("content-type")?.startsWith("text/html")) continue;
      for (const [, target = ""] of text.matchAll(/(?:href|src)="([^"]*)"/g)) {
        expect(target, path).toMatch(/^\/[a-z]/);
        if (!seen.has(target)) open.push(target);
        seen.add(target);
      }
    }
    expect([...seen].sort()).toEqual(["/docs", "/openapi/v1.yaml", ...textPages, ...files].sort());
  });

  test("a browser is told to run nothing but our own files, and to put no page into a frame", async () => {
    for (const path of ["/docs", ...textPages]) {
      const { headers } = await get(path);
      const policy = headers.get("content-security-policy") as string;
      expect(policy).toMatch(/^default-src 'none'; /);
      expect(policy).toContain("frame-ancestors 'none'");
      const script = /script-src ([^;]*)/.exec(policy)?.[1];
      expect(script, path).toBe(path === "/docs" ? "'self'" : undefined);
      expect(headers.get("x-content-type-options")).toBe("nosniff");
      expect(headers.get("referrer-policy")).toBe("no-referrer");
      expect(headers.get("strict-transport-security")).toBeNull();
    }
  });

  test("strict transport is asked for where the service's address is one of TLS", async () => {
    const secure = await startService({ env: { PUBLIC_URL: "https://ingest.example/" } });
    try {
      const { headers } = await fetch(`${secure.app.url}/docs/errors`);
      expect(headers.get("strict-transport-security")).toBe("max-age=31536000");
    } finally {
      await secure.app.close();
    }
  });

  test.each(["/docs", "/docs/errors/invalid_key", "/openapi/v1.yaml", ...files])(
    "%s is sent once: who has it gets 304, and it may be compressed",
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

  test("a path below /docs that does not exist is not_found, in the form of every error", async () => {
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

  test("the limits page has every bound and every header", async () => {
    const text = unescaped(await (await get("/docs/limits")).text()).replaceAll("\u202f", "");
    for (const { value, unit } of [...Object.values(limitTable), ...Object.values(timelineLimitTable)]) {
      expect(text).toContain(`<b>${value}</b> ${unit}`);
    }
    for (const { name } of Object.values(answerHeaderTable)) expect(text).toContain(`<code>${name}</code>`);
  });
});

describe("the page about an error", () => {
  test.each(codes)(
    "%s says what happened, whether to retry, and shows the error and the right reaction",
    async (code) => {
      const text = unescaped(await (await get(`/docs/errors/${code}`)).text());
      const { http, when, remedy, retryable, example } = errorTable[code];
      const { rest, grpc } = reactions[code](url);
      expect(text.replaceAll(/<\/?code>/g, "`")).toContain(remedy);
      for (const part of [when, `HTTP ${http}`, retryable ? "retry: yes" : "retry: no", rest, grpc]) {
        expect(text).toContain(part);
      }
      const [, body = ""] = /<pre><code>HTTP \d+\n[^]*?\n\n([^]*?)<\/code>/.exec(text) ?? [];
      const requestId = answerHeaderTable["x-request-id"].example;
      expect(JSON.parse(body)).toEqual({
        error: { code, message: example, requestId, docsUrl: `${url}/docs/errors/${code}` },
      });
      expect(text).toContain(`"reason": "${code}"`);
    },
  );

  const env = () => ({
    ...process.env,
    WEPEOPLE_API_KEY: tenant.key,
    WEPEOPLE_READ_KEY: readKey,
    PATH: `${process.env.PATH}${delimiter}${join(homedir(), "go/bin")}`,
  });
  const shell = (command: string) => run("bash", ["-euo", "pipefail", "-c", command], { env: env() });

  test("each right reaction works over REST, as it stands, with real curl", async () => {
    const answers = await Promise.all(
      codes.map(async (code) => [code, await shell(reactions[code](url).rest)] as const),
    );
    for (const [code, { stdout }] of answers) expect(stdout, code).toMatch(/^\{"(ok|requestId|events)":|^openapi: 3/);
  });

  test("each right reaction works over gRPC, as it stands, with real grpcurl", async ({ skip }) => {
    await shell("command -v grpcurl").catch(() => skip("grpcurl is not installed"));
    const answers = await Promise.all(
      codes.map(async (code) => [code, await shell(reactions[code](url).grpc)] as const),
    );
    for (const [code, { stdout }] of answers) expect(stdout, code).toMatch(/"(ok|requestId|events)":/);
  });
});

/** Where Chromium is: CHROMIUM, or where distributions put it. */
async function findChromium(): Promise<string | undefined> {
  const places = [process.env.CHROMIUM, "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
  for (const path of places.filter((place) => place !== undefined)) {
    if (
      await access(path).then(
        () => true,
        () => false,
      )
    ) {
      return path;
    }
  }
  return undefined;
}

const executablePath = await findChromium();

describe.skipIf(executablePath === undefined)(
  "in Chromium (skipped where there is none; CHROMIUM names one)",
  () => {
    const screenshots = join(import.meta.dirname, "../../screenshots");
    let browser: Browser;
    beforeAll(async () => {
      await mkdir(screenshots, { recursive: true });
      browser = await chromium.launch({ executablePath: executablePath as string, args: ["--no-sandbox"] });
    });
    afterAll(() => browser.close());

    /** Opens the page offline but for the service, and keeps a picture of it in test/screenshots. */
    async function visit(name: string, path: string, work: (page: Page) => Promise<void>): Promise<void> {
      for (const colorScheme of ["light", "dark"] as const) {
        const page = await browser.newPage({ colorScheme, viewport: { width: 1280, height: 900 } });
        const trouble: string[] = [];
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
        await page.goto(`${url}${path}`);
        await work(page);
        await page.screenshot({ path: join(screenshots, `${name}-${colorScheme}.png`) });
        expect(trouble).toEqual([]);
        await page.close();
      }
    }

    test("/docs shows every call of the document and can send them, with no error and no request to another host", async () => {
      await visit("docs", "/docs", async (page) => {
        await page.getByRole("heading", { level: 1, name: "Ingest" }).waitFor();
        // In the sidebar; what it leads to is drawn when it is scrolled to.
        for (const summary of [/Validate a key/, /Ingest one or more events/, /Replace the current snapshot card/]) {
          await page.getByText(summary).first().waitFor();
        }
        const ping = `fetch("/api/v1/ingest/ping", { headers: { authorization: "Bearer ${tenant.key}" } })`;
        expect(await page.evaluate(`${ping}.then(({ status }) => status)`)).toBe(200);
      });
    });

    test("the page that a docsUrl names opens, with no error and no request to another host", async () => {
      const response = await get("/api/v1/ingest/ping");
      const { error } = (await response.json()) as { error: { docsUrl: string } };
      await visit("error", new URL(error.docsUrl).pathname, async (page) => {
        expect(await page.getByRole("heading", { level: 1 }).textContent()).toBe("missing_authorization");
        expect(await page.locator(".facts .no").isVisible()).toBe(true);
        // The style sheet has been let in.
        expect(await page.evaluate("getComputedStyle(document.querySelector('pre')).overflowX")).toBe("auto");
      });
    });
  },
  240_000,
);
