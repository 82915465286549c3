import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { AxeBuilder } from "@axe-core/playwright";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { freePort } from "../../src/embedded/mongod.ts";
import { createIdSource } from "../../src/ids.ts";
import { auditCollection } from "../../src/store/audit.ts";
import { addToMinutes, countRequest, minuteMs, noTraffic, percentileOf } from "../../src/store/traffic.ts";
import { requestCollection } from "../../src/store/requests.ts";
import { insertToken } from "../support/admin.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../support/service.ts";
import { findTool } from "../support/tools.ts";

const executablePath = process.env.CHROMIUM ?? findTool("chromium");
const screenshots = join(import.meta.dirname, "../screenshots");

const ids = createIdSource();

/** Markup, directions and controls that a page must show as text. */
const hostile = `<img src=x onerror="document.title='owned'">\u202egnp.exe`;

describe.skipIf(executablePath === undefined)(
  "the console in Chromium (skipped without it; CHROMIUM sets its path)",
  { timeout: 120_000 },
  () => {
    const database = `test-console-${Date.now()}`;
    let browser: Browser;
    let port: number;
    let service: TestService;
    let tenant: Tenant;
    let manager: string;
    let viewer: string;
    /** Of almost all requests of the last hour. */
    let latencyMs: number;

    const start = () =>
      startService({ database, env: { PORT: String(port), ADMIN_ON_PUBLIC_PORT: "1", DRAIN_SECONDS: "0" } });
    const send = (event: object, key = tenant.key) =>
      fetch(`${service.app.url}/api/v1/ingest/events`, {
        method: "POST",
        headers: { ...bearer(key), "content-type": "application/json" },
        body: JSON.stringify({ events: [{ category: "other", actor: { externalId: "crm-user-42" }, ...event }] }),
      });

    beforeAll(async () => {
      await mkdir(screenshots, { recursive: true });
      port = await freePort();
      service = await start();
      tenant = await createTenant(service.admin, { name: "Acme" });
      manager = (await insertToken(service, "manager", tenant.organizationId)).token;
      viewer = (await insertToken(service, "viewer", tenant.organizationId)).token;
      const actor = { externalId: "crm-user-1", displayName: hostile };
      await send({ eventType: "ticket.resolved", actor, metadata: { note: hostile, long: "x".repeat(12_000) } });
      await send({ eventType: "deploy.shipped" });
      await fetch(`${service.app.url}/api/v1/ingest/snapshots`, {
        method: "POST",
        headers: { ...bearer(tenant.key), "content-type": "application/json" },
        body: JSON.stringify({ snapshotType: "tickets_open", actor, metrics: { open: 7 } }),
      });
      const hour = { ...noTraffic(), refused: 12 };
      for (let i = 0; i < 1_000; i++) countRequest(hour, 500);
      latencyMs = percentileOf(hour, 0.5) ?? 0;
      const minute = Math.floor(Date.now() / minuteMs) - 10;
      await addToMinutes(service.app.db, [{ ...hour, organizationId: tenant.organizationId, minute }]);
      browser = await chromium.launch({ executablePath: executablePath as string, args: ["--no-sandbox"] });
    });
    afterAll(async () => {
      await browser?.close();
      await service?.app.close();
    });

    interface Visit {
      readonly page: Page;
      /** What the browser's console and the page complained of. */
      readonly trouble: string[];
      readonly context: BrowserContext;
    }

    async function open(token: string, options: Parameters<Browser["newContext"]>[0] = {}): Promise<Visit> {
      const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
      const page = await context.newPage();
      page.setDefaultTimeout(15_000);
      const trouble: string[] = [];
      page.on("console", (message) => {
        if (message.type() === "error" || message.type() === "warning") trouble.push(message.text());
      });
      page.on("pageerror", (error) => trouble.push(error.message));
      page.on("request", (request) => {
        if (!request.url().startsWith(service.app.url)) trouble.push(`loads ${request.url()}`);
        if (request.url().includes("wp_")) trouble.push(`has a secret in an address: ${request.url()}`);
      });
      await page.goto(`${service.app.url}/console/`);
      await page.getByLabel("Access token").fill(token);
      await page.getByRole("button", { name: "Sign in" }).click();
      await page.getByRole("heading", { level: 1, name: "Overview" }).waitFor();
      return { page, trouble, context };
    }

    const go = (page: Page, name: string) =>
      page.getByRole("navigation").getByRole("link", { name, exact: true }).click();

    test("a new user makes a key, sends with it, sees the event and a refusal live, and lets the type in", async () => {
      const { page, trouble, context } = await open(manager);
      await go(page, "Apps and keys");
      await page.getByRole("button", { name: "New key" }).click();
      await page.getByLabel("Name").fill("first");
      await page.getByRole("button", { name: "Create" }).click();
      const secret = await page.locator("dialog pre").first().innerText();
      expect(secret).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await page.getByRole("button", { name: "Done" }).click();
      await page.getByRole("cell", { name: "first", exact: true }).waitFor();

      await go(page, "Live");
      await page.getByRole("status").getByText("Live").waitFor();
      const second = await context.newPage();
      expect(await second.evaluate<number>("sessionStorage.length").catch(() => 0)).toBe(0);
      await second.close();
      expect((await send({ eventType: "ticket.resolved" }, secret)).status).toBe(202);
      await page
        .getByRole("button", { name: /event.*ticket\.resolved/ })
        .first()
        .waitFor();
      expect((await send({ eventType: "deploy.shipped" }, secret)).status).toBe(403);
      await page
        .getByRole("button", { name: /forbidden_event_type/ })
        .first()
        .click();
      await page.getByText("The whole row").waitFor();
      await page.getByRole("link", { name: "Explain its request" }).click();
      await page.getByText("Refused", { exact: true }).waitFor();

      await go(page, "Apps and keys");
      await page.getByRole("button", { name: "Edit the whitelist" }).click();
      const types = page.getByLabel("Event types that it may send");
      await types.fill("ticket.*\ndeploy.shipped");
      await page.getByText(/would have accepted \d+ of \d+ events/).waitFor();
      await page.getByRole("button", { name: "Save" }).click();
      await page.getByRole("listitem").getByText("deploy.shipped").waitFor();
      await expect.poll(async () => (await send({ eventType: "deploy.shipped" }, secret)).status).toBe(202);

      await page.getByRole("button", { name: "Revoke first" }).click();
      await page.locator("dialog").getByRole("button", { name: "Revoke" }).click();
      await page.getByText(/Every instance acted on it after \d+ ms/).waitFor();
      expect((await send({ eventType: "ticket.resolved" }, secret)).status).toBe(401);
      expect(trouble).toEqual([]);
      await context.close();
    });

    const screens = [
      ["overview", "Overview"],
      ["keys", "Apps and keys"],
      ["live", "Live"],
      ["requests", "Requests"],
      ["workers", "Workers"],
      ["playground", "Playground"],
      ["audit", "Audit"],
      ["tokens", "Access tokens"],
      ["organizations", "Organisations"],
    ] as const;
    /** Takes half a minute, so it runs in CI and with CONSOLE=1. */
    const asked = process.env.CONSOLE !== undefined || process.env.CI !== undefined;

    test.runIf(asked)("each screen in light, dark and 400 px: axe finds nothing, and nothing is cut off", async () => {
      const operator = (await insertToken(service, "operator")).token;
      const { page, trouble, context } = await open(operator, { colorScheme: "light" });
      const home = page.url();
      for (const [path, title] of screens) {
        await page.goto(`${home}/${path === "overview" ? "" : path}`);
        await page.getByRole("heading", { level: 1, name: title }).waitFor();
        await page.locator(".state[role=status]").waitFor({ state: "detached" });
        const look = async (name: string, axe: AxeBuilder) => {
          const overflow = await page.evaluate<number>("document.documentElement.scrollWidth - innerWidth");
          expect(overflow, `${path} is wider than the window`).toBeLessThanOrEqual(0);
          const { violations } = await axe.analyze();
          expect(violations.map(({ id, nodes }) => `${path}: ${id} ${nodes[0]?.html.slice(0, 120)}`)).toEqual([]);
          await page.screenshot({ path: join(screenshots, `console-${path}-${name}.png`), fullPage: true });
        };
        await look("light", new AxeBuilder({ page }));
        // The page's parts are the same; only its colours differ.
        await page.emulateMedia({ colorScheme: "dark" });
        await look("dark", new AxeBuilder({ page }).withRules("color-contrast"));
        await page.emulateMedia({ colorScheme: "light" });
        await page.setViewportSize({ width: 400, height: 800 });
        await look("400px", new AxeBuilder({ page }).disableRules("color-contrast"));
        await page.setViewportSize({ width: 1280, height: 900 });
      }
      expect(trouble).toEqual([]);
      await context.close();
    });

    test("what a caller named is shown as text", async () => {
      const { page, trouble, context } = await open(manager);
      await go(page, "Workers");
      const link = page.getByRole("link", { name: /<img src=x/ });
      await link.waitFor();
      expect(await link.innerText()).not.toContain("\u202e");
      await link.click();
      await page.getByRole("heading", { level: 1, name: /<img src=x/ }).waitFor();
      await page.getByRole("button", { name: "Read the timeline" }).click();
      await page.getByRole("cell", { name: "ticket.resolved" }).first().waitFor();
      await page.screenshot({ path: join(screenshots, "console-worker.png"), fullPage: true });
      expect(await page.title()).toBe("Ingest console");
      expect(trouble).toEqual([]);
      await context.close();
    });

    test("a refusal stands beside the event's JSON: one that was pasted, and one from the playground", async () => {
      const { page, trouble, context } = await open(manager);
      const home = page.url();
      const events = ["ticket.resolved", "order.paid"].map((eventType) => ({
        ...{ eventType, category: "other", actor: { externalId: "crm-user-1", displayName: hostile } },
      }));
      const response = await fetch(`${service.app.url}/api/v1/ingest/events`, {
        method: "POST",
        headers: { ...bearer(tenant.key), "content-type": "application/json" },
        body: JSON.stringify({ events: [...events, { ...events[0], actor: {} }] }),
      });
      expect(response.status).toBe(207);
      await page.goto(`${home}/requests/${response.headers.get("x-request-id")}`);
      const paste = page.getByLabel("Body of the request");
      await paste.fill('{"events": [');
      await page.getByRole("button", { name: "Show it beside the refusals" }).click();
      await page.getByRole("alert").getByText("This is not JSON").waitFor();
      await paste.fill(JSON.stringify({ events }));
      await page.getByRole("button", { name: "Show it beside the refusals" }).click();
      await page.getByText("This body has 2 events, and the request had 3.").waitFor();
      expect(await page.locator("mark").allInnerTexts()).toEqual(['  "eventType": "order.paid",']);
      await page.getByLabel("Show", { exact: true }).selectOption("All events");
      await page.getByText("events[0]", { exact: true }).waitFor();
      expect(await page.locator("main").innerText()).not.toContain("\u202e");
      await page.screenshot({ path: join(screenshots, "console-request.png"), fullPage: true });

      await go(page, "Playground");
      await page.getByLabel("eventType").fill("order.paid");
      await page.getByLabel("Key").fill(tenant.key);
      await page.getByRole("button", { name: "Send", exact: true }).click();
      await page.getByRole("link", { name: /^Explain its request/ }).click();
      await page.locator("mark").getByText('"order.paid"').waitFor();
      expect(trouble.filter((line) => !line.includes("403 (Forbidden)"))).toEqual([]);
      await context.close();
    });

    test("a new key's first calls work as they are printed", async () => {
      const { page, context } = await open(manager);
      await go(page, "Apps and keys");
      await page.getByRole("button", { name: "New key" }).click();
      await page.getByRole("button", { name: "Create" }).click();
      const code = (name: string) => page.locator(`dialog pre[aria-label="${name}"]`).innerText();
      const run = promisify(execFile);
      const grpcurl = findTool("grpcurl");
      const folder = await mkdtemp(join(import.meta.dirname, "call-"));
      try {
        expect(JSON.parse((await run("sh", ["-c", await code("curl")])).stdout)).toMatchObject({ accepted: 1 });
        const file = join(folder, "main.ts");
        const generated = join(import.meta.dirname, "../../src/gen");
        await writeFile(file, (await code("TypeScript")).replace("./gen/ts", generated));
        expect((await run(process.execPath, [file])).stdout).toContain("accepted: 1");
        if (grpcurl !== undefined) {
          const command = (await code("gRPC")).replace(/^grpcurl/, grpcurl);
          expect(JSON.parse((await run("sh", ["-c", command])).stdout)).toMatchObject({ accepted: 1 });
        }
      } finally {
        await rm(folder, { recursive: true });
      }
      await context.close();
    });

    test("a page of a long list without what was asked for leads to the next one", async () => {
      const other = await createTenant(service.admin, { name: "Long" });
      const { token } = await insertToken(service, "viewer", other.organizationId);
      const record = (i: number) => ({
        ...{
          _id: ids.next("rec"),
          requestId: ids.next("req"),
          receivedAt: new Date(),
          organizationId: other.organizationId,
        },
        ...{ rpc: "Events", protocol: "rest" as const, status: 400, connectCode: "invalid_argument", accepted: 0 },
        ...{
          code: i === 0 ? ("missing_actor" as const) : ("invalid_body" as const),
          reason: "events: must be an array",
        },
        ...{
          appId: other.appId,
          keyId: "key_",
          keyHint: "wp_live_…",
          durationMs: 1,
          expiresAt: new Date(Date.now() + 600_000),
        },
      });
      await requestCollection(service.app.db).insertMany(Array.from({ length: 2_600 }, (_, i) => record(i)));
      const { page, trouble, context } = await open(token);
      await go(page, "Requests");
      await page.getByRole("row").nth(50).waitFor();
      const rows = await page.getByRole("row").count();
      await page.getByRole("button", { name: "Next" }).click();
      await page.getByText("Page 2").waitFor();
      expect(await page.getByRole("row").count()).toBe(rows);
      await page.getByLabel("Code").selectOption("missing_actor");
      await page.getByText("Nothing fits on this page.").waitFor();
      await page.getByRole("button", { name: "Next" }).click();
      await page.getByRole("cell", { name: "missing_actor" }).waitFor();
      expect(trouble).toEqual([]);
      await context.close();
    });

    test("a viewer's token changes nothing, whatever is clicked", async () => {
      const { page, trouble, context } = await open(viewer);
      await expect.poll(() => page.getByText(`${latencyMs} ms`, { exact: true }).count()).toBe(2);
      await page.getByText(/^Requests answered: 1,\d+, with an error: \d+$/).waitFor();
      const before = await auditCollection(service.app.db).countDocuments();
      const home = page.url();
      for (const [path, title] of screens.slice(0, 6)) {
        await page.goto(`${home}/${path === "overview" ? "" : path}`);
        await page.getByRole("heading", { level: 1, name: title }).waitFor();
        for (const button of await page.locator("main button:visible").all()) {
          await button.click({ timeout: 2_000 }).catch(() => {});
          await page.keyboard.press("Escape");
        }
      }
      expect(await page.getByRole("navigation").getByRole("link", { name: "Access tokens" }).count()).toBe(0);
      expect(await auditCollection(service.app.db).countDocuments()).toBe(before);
      expect(trouble).toEqual([]);
      await context.close();
    });

    test("the keyboard alone makes a key and revokes it", async () => {
      const { page, context } = await open(manager);
      const focus = async (name: RegExp) => {
        for (let i = 0; i < 80; i++) {
          await page.keyboard.press("Tab");
          const text = await page.evaluate<string>(
            "document.activeElement.ariaLabel ?? document.activeElement.textContent",
          );
          if (name.test(text.trim())) return;
        }
        throw new Error(`the Tab key does not reach ${name.source}`);
      };
      await focus(/^Apps and keys$/);
      await page.keyboard.press("Enter");
      await page.getByRole("button", { name: "New key" }).waitFor();
      await focus(/^New key$/);
      await page.keyboard.press("Enter");
      await page.keyboard.type("by keyboard");
      await page.keyboard.press("Enter");
      await page.getByText("Copy it now").waitFor();
      await page.keyboard.press("Escape");
      await page.getByRole("cell", { name: "by keyboard", exact: true }).waitFor();
      await focus(/^Revoke by keyboard$/);
      await page.keyboard.press("Enter");
      await focus(/^Revoke$/);
      await page.keyboard.press("Enter");
      await page.getByText(/Every instance acted on it/).waitFor();
      await context.close();
    });

    test("Live goes on without a gap when the service is restarted, and signing out forgets the token", async () => {
      const { page, context } = await open(manager);
      await go(page, "Live");
      await page.getByRole("status").getByText("Live").waitFor();
      await send({ eventType: "ticket.before" });
      await page.getByRole("button", { name: /ticket\.before/ }).waitFor();
      await service.app.close();
      await page.getByText("The connection is lost").waitFor();
      service = await start();
      await send({ eventType: "ticket.during" });
      await page.getByRole("button", { name: /ticket\.during/ }).waitFor();
      expect(await page.getByRole("button", { name: /ticket\.(before|during)/ }).count()).toBe(2);
      await page.getByRole("button", { name: "Sign out" }).click();
      await page.getByLabel("Access token").waitFor();
      expect(await page.evaluate<string>("JSON.stringify([sessionStorage, localStorage])")).not.toContain("wp_adm");
      await context.close();
    });
  },
);
