import { execFile } from "node:child_process";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { type Browser, chromium, type Locator, type Page } from "playwright-core";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { freePort } from "../../src/embedded/mongod.ts";
import { createIdSource } from "../../src/ids.ts";
import { auditCollection } from "../../src/store/audit.ts";
import { requestCollection } from "../../src/store/requests.ts";
import { addToMinutes, countRequest, minuteMs, noTraffic, percentileOf } from "../../src/store/traffic.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { axeFindings, expectPlain, hostile, Keyboard, SharedPage } from "../support/browser.ts";
import { newSigningKey, SignInIssuer } from "../support/issuer.ts";
import { ServiceProcess } from "../support/processes.ts";
import { bearer, createTenant, startService, type Tenant, type TestService } from "../support/service.ts";
import { findTool } from "../support/tools.ts";

const executablePath = process.env.CHROMIUM ?? findTool("chromium");
const screenshots = join(import.meta.dirname, "../screenshots");

const ids = createIdSource();

const screens = [
  ["", "Overview"],
  ["keys", "Apps and keys"],
  ["live", "Live"],
  ["requests", "Requests"],
  ["workers", "Workers"],
  ["playground", "Playground"],
  ["audit", "Audit"],
  ["tokens", "Access tokens"],
  ["organizations", "Organisations"],
] as const;

describe.skipIf(executablePath === undefined)(
  "the console in Chromium (skipped without it; CHROMIUM sets its path)",
  { timeout: 120_000 },
  () => {
    const database = `test-console-${Date.now()}`;
    let browser: Browser;
    let shared: SharedPage;
    let issuer: SignInIssuer;
    let port: number;
    /** Serves the console, as a process that a test may kill. */
    let service: ServiceProcess;
    /** Another instance on the same database. */
    let other: TestService;
    let tenant: Tenant;
    let manager: string;
    let home: string;
    /** Of almost all requests of the last hour. */
    let latencyMs: number;

    const oidcEnv = () => ({
      OIDC_ISSUER: issuer.url,
      OIDC_AUDIENCE: issuer.audience,
      OIDC_CLIENT_ID: issuer.clientId,
      OIDC_ROLE_CLAIM: "roles",
    });
    const start = () =>
      ServiceProcess.start({
        ...{ MONGODB_URI: inject("mongodbUri"), MONGODB_DB: database, PORT: String(port), HOST: "127.0.0.1" },
        ...{ ADMIN_ON_PUBLIC_PORT: "1", LOG_LEVEL: "info", ...oidcEnv() },
      });
    const post = (call: "events" | "snapshots", body: object, key: string, url = other.app.url) =>
      fetch(`${url}/api/v1/ingest/${call}`, {
        method: "POST",
        headers: { ...bearer(key), "content-type": "application/json" },
        body: JSON.stringify(body),
      });
    const actor = { externalId: "crm-user-42" };
    const send = (event: object, key = tenant.key, url?: string) =>
      post("events", { events: [{ category: "other", actor, ...event }] }, key, url);

    beforeAll(async () => {
      await mkdir(screenshots, { recursive: true });
      issuer = await new SignInIssuer([await newSigningKey("first")]).start();
      port = await freePort();
      home = `http://127.0.0.1:${port}/console/`;
      // The second one takes ID tokens: its client is the audience.
      const env = { ...oidcEnv(), OIDC_AUDIENCE: issuer.clientId, ADMIN_ON_PUBLIC_PORT: "1" };
      [other, service] = await Promise.all([startService({ database, env }), start()]);
      issuer.redirectUris.add(home).add(`${other.app.url}/console/`);
      tenant = await createTenant(other.admin, { name: "Acme" });
      manager = (await insertToken(other, "manager", tenant.organizationId)).token;
      await send({ eventType: "ticket.resolved" });
      await send({ eventType: "deploy.shipped" });
      await post("snapshots", { snapshotType: "tickets_open", actor, metrics: { open: 7 } }, tenant.key);
      const hour = { ...noTraffic(), refused: 12 };
      for (let i = 0; i < 1_000; i++) countRequest(hour, 500);
      latencyMs = percentileOf(hour, 0.5) ?? 0;
      const minute = Math.floor(Date.now() / minuteMs) - 10;
      await addToMinutes(other.app.db, [{ ...hour, organizationId: tenant.organizationId, minute }]);
      browser = await chromium.launch({ executablePath: executablePath as string, args: ["--no-sandbox"] });
      shared = await SharedPage.open(browser);
    });
    afterAll(async () => {
      await browser?.close();
      await service?.end("SIGKILL");
      await other?.app.close();
      await issuer?.stop();
    });

    const titled = (page: Page, name: string) => page.getByRole("heading", { level: 1, name, exact: true }).waitFor();
    /** Several parts of a screen may load at once. */
    const loaded = (page: Page) => expect.poll(() => page.locator(".state[role=status]").count()).toBe(0);
    const go = (page: Page, name: string) =>
      page.getByRole("navigation").getByRole("link", { name, exact: true }).click();
    const isLive = (page: Page) => page.getByRole("status").getByText("Live", { exact: true }).waitFor();
    /** A row of Live. */
    const row = (page: Page, name: RegExp) => page.getByRole("region", { name: "Live" }).getByRole("button", { name });

    /** In CI and with CONSOLE=1: half a minute for each screen's looks, which leave screenshots. */
    const isShown = process.env.CONSOLE !== undefined || process.env.CI !== undefined;
    const picture = (page: Page, name: string) =>
      page.screenshot({ path: join(screenshots, `console-${name}.png`), fullPage: true });

    async function signIn(page: Page, token: string): Promise<void> {
      await page.getByLabel("Access token").fill(token);
      await page.getByRole("button", { name: "Sign in", exact: true }).click();
    }

    async function open(token: string) {
      const opened = await shared.visit(home);
      await signIn(opened.page, token);
      await titled(opened.page, "Overview");
      return opened;
    }

    test("a new user makes a key, sends with it, sees the event and a refusal live, and lets the type in", async () => {
      const { page, trouble } = await shared.visit(home);
      let clicks = 0;
      const click = (target: Locator) => {
        clicks++;
        return target.click();
      };
      const button = (name: string | RegExp) => page.getByRole("button", { name, exact: true });
      const screen = (name: string) => click(page.getByRole("navigation").getByRole("link", { name, exact: true }));
      await page.getByLabel("Access token").fill(manager);
      await click(button("Sign in"));
      await screen("Apps and keys");
      await click(button("New key"));
      await page.getByLabel("Name").fill("first");
      await click(button("Create"));
      const secret = await page.locator("dialog pre").first().innerText();
      expect(secret).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await click(button("Done"));
      await page.getByRole("cell", { name: "first", exact: true }).waitFor();

      await screen("Live");
      await isLive(page);
      expect((await send({ eventType: "ticket.resolved" }, secret)).status).toBe(202);
      await row(page, /event.*ticket\.resolved/).waitFor();
      expect((await send({ eventType: "deploy.shipped" }, secret)).status).toBe(403);
      await click(row(page, /forbidden_event_type/).first());
      await page.getByText("The whole row").waitFor();
      await click(page.getByRole("link", { name: "Explain its request" }));
      await page.getByText("Refused", { exact: true }).waitFor();

      await screen("Apps and keys");
      await click(button("Edit the whitelist"));
      await page.getByLabel("Event types that it may send").fill("ticket.*\ndeploy.shipped");
      await page.getByText(/would have accepted \d+ of \d+ events/).waitFor();
      await click(button("Save"));
      await page.getByRole("listitem").getByText("deploy.shipped").waitFor();
      await screen("Live");
      await isLive(page);
      await expect.poll(async () => (await send({ eventType: "deploy.shipped" }, secret)).status).toBe(202);
      await row(page, /event.*deploy\.shipped/).waitFor();
      // More would not fit into two minutes of a person who reads.
      expect(clicks).toBeLessThanOrEqual(12);

      await screen("Apps and keys");
      await button("Revoke first").click();
      await page.locator("dialog").getByRole("button", { name: "Revoke" }).click();
      await page.getByText(/Every instance acted on it after \d+ ms/).waitFor();
      expect((await send({ eventType: "ticket.resolved" }, secret)).status).toBe(401);
      expect(trouble).toEqual([]);
    });

    test("the keyboard alone does all of it, and its user always sees where the focus is", async () => {
      const { page, trouble } = await shared.visit(home);
      const keyboard = new Keyboard(page);
      await keyboard.isAt(/^Access token$/);
      await keyboard.type(manager);
      await keyboard.press("Enter");
      await titled(page, "Overview");
      // A part that loads late moves the element that has the focus.
      await loaded(page);
      await keyboard.open(/^Apps and keys$/);
      await page.getByRole("button", { name: "New key" }).waitFor();
      await keyboard.open(/^New key$/);
      await keyboard.isAt(/^Name$/);
      await keyboard.press("Escape");
      await page.locator("dialog").waitFor({ state: "detached" });
      await keyboard.isAt(/^New key$/);
      await keyboard.press("Enter");
      await keyboard.isAt(/^Name$/);
      await keyboard.type("typed");
      await keyboard.press("Enter");
      const secret = await page.locator("dialog pre").first().innerText();
      await keyboard.press("Escape");
      await keyboard.isAt(/^New key$/);
      await page.getByRole("cell", { name: "typed", exact: true }).waitFor();

      await keyboard.open(/^Live$/);
      await isLive(page);
      expect((await send({ eventType: "ticket.resolved" }, secret)).status).toBe(202);
      await row(page, /ticket\.resolved/).waitFor();
      expect((await send({ eventType: "build.done" }, secret)).status).toBe(403);
      await row(page, /build\.done/).waitFor();
      await keyboard.to(/forbidden_event_type/);
      await keyboard.press("ArrowDown");
      await keyboard.isAt(/ticket\.resolved/);
      await keyboard.press("ArrowUp");
      await keyboard.isAt(/build\.done/);
      await keyboard.press("Enter");
      await keyboard.open(/^Explain its request$/);
      await page.getByText("Refused", { exact: true }).waitFor();
      await keyboard.isAt(/^Requests/);

      await keyboard.open(/^Apps and keys$/);
      await page.getByRole("button", { name: "Edit the whitelist" }).waitFor();
      await keyboard.open(/^Edit the whitelist$/);
      await keyboard.isAt(/^Event types/);
      await keyboard.press("Control+End");
      await keyboard.type("\nbuild.done");
      await page.getByText(/would have accepted \d+ of \d+ events/).waitFor();
      await keyboard.open(/^Save$/);
      await page.getByRole("listitem").getByText("build.done").waitFor();
      await keyboard.isAt(/^Edit the whitelist$/);
      await keyboard.open(/^Live$/);
      await isLive(page);
      await expect.poll(async () => (await send({ eventType: "build.done" }, secret)).status).toBe(202);
      await row(page, /event.*build\.done/).waitFor();

      await keyboard.open(/^Apps and keys$/);
      await page.getByRole("button", { name: "Revoke typed" }).waitFor();
      await keyboard.open(/^Revoke typed$/);
      await keyboard.isAt(/^Cancel$/);
      await keyboard.open(/^Revoke$/);
      await page.getByText(/Every instance acted on it/).waitFor();
      // The button that opened the dialog is gone with the key's use, so its table has the focus.
      await keyboard.isAt(/^Apps and keys: CRM Hub$/);
      await keyboard.open(/^Sign out$/);
      await keyboard.isAt(/^Access token$/);
      expect(await page.evaluate<string>("JSON.stringify([sessionStorage, localStorage])")).not.toContain("wp_");
      expect(trouble).toEqual([]);
    });

    test.runIf(isShown)(
      "each screen in light and dark, from 360 to 1920 pixels: axe finds nothing, and all fits",
      async () => {
        const operator = (await insertToken(other, "operator")).token;
        const { page, trouble } = await open(operator);
        const organization = page.url();
        for (const [path, title] of screens) {
          await page.goto(`${organization}/${path}`);
          await titled(page, title);
          await loaded(page);
          const look = async (name: string, rules?: Parameters<typeof axeFindings>[1]) => {
            const overflow = await page.evaluate<number>("document.documentElement.scrollWidth - innerWidth");
            expect(overflow, `${title} is wider than the window`).toBeLessThanOrEqual(0);
            if (rules !== undefined) expect(await axeFindings(page, rules), title).toEqual([]);
            await picture(page, `${path || "overview"}-${name}`);
          };
          await look("light", "all");
          // The page's parts are the same; only its colours differ.
          await page.emulateMedia({ colorScheme: "dark" });
          await look("dark", "colours");
          await page.emulateMedia({ colorScheme: "light" });
          await page.setViewportSize({ width: 400, height: 800 });
          await look("400px", "parts");
          for (const width of [360, 1920]) {
            await page.setViewportSize({ width, height: 900 });
            await look(`${width}px`);
          }
          await page.setViewportSize({ width: 1280, height: 900 });
        }
        expect(trouble).toEqual([]);
      },
      300_000,
    );

    test("what callers and other users named is shown as text on each screen", async () => {
      const named = await createTenant(other.admin, { name: hostile });
      const token = (await insertToken(other, "manager", named.organizationId)).token;
      const change = { name: hostile };
      for (const [method, path] of [
        ["PATCH", `/apps/${named.appId}`],
        ["POST", `/apps/${named.appId}/keys`],
      ] as const) {
        const answer = await adminRest(other.app.url, token, method, path, change);
        expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
      }
      const { page, trouble } = await open(token);
      await go(page, "Live");
      await isLive(page);
      const worker = { externalId: hostile, displayName: hostile };
      const metadata = { [hostile]: hostile, long: "x".repeat(16_000) };
      expect((await send({ eventType: "ticket.resolved", actor: worker, metadata }, named.key)).status).toBe(202);
      expect((await send({ eventType: hostile, actor: worker }, named.key)).status).toBe(400);
      for (const open of [7, 8]) {
        const snapshot = {
          snapshotType: "tickets",
          actor: worker,
          metrics: { [hostile]: open, [`${hostile} 2`]: hostile },
        };
        expect((await post("snapshots", snapshot, named.key)).status).toBe(202);
      }
      // The whole row of an accepted event, and of a refused one.
      await row(page, /event.*ticket\.resolved/).click();
      await page.getByText("The whole row").waitFor();
      await expectPlain(page, 2);
      expect(JSON.parse(await page.locator("pre.code").innerText())).toMatchObject({ row: { metadata } });
      await row(page, /<img src=x/)
        .first()
        .click();
      await expectPlain(page, 2);
      await page.getByRole("link", { name: "Explain its request" }).click();
      await page.getByText("Refused", { exact: true }).waitFor();
      await expectPlain(page);

      await go(page, "Apps and keys");
      await page.getByRole("button", { name: /^Revoke <img/ }).click();
      await expectPlain(page, 3);
      await page.keyboard.press("Escape");
      await go(page, "Audit");
      await page.getByText("UpdateApp").waitFor();
      for (const summary of await page.locator("summary").all()) await summary.click();
      await expectPlain(page, 2);

      await go(page, "Workers");
      await page.getByRole("link", { name: /<img src=x/ }).click();
      await page.getByRole("heading", { level: 1, name: /<img src=x/ }).waitFor();
      await page.getByRole("button", { name: "Read the timeline" }).click();
      await page.getByRole("heading", { name: /^tickets · <img/ }).waitFor();
      await page.getByRole("cell", { name: "ticket.resolved" }).first().waitFor();
      await expectPlain(page, 5);
      if (isShown) await picture(page, "worker");

      await go(page, "Overview");
      await page.getByRole("heading", { name: "By app" }).waitFor();
      await expectPlain(page, 2);
      await go(page, "Playground");
      await page.getByLabel("Key", { exact: true }).fill(named.key);
      await page.getByLabel("eventType").fill(hostile);
      await page.getByLabel("displayName").fill(hostile);
      expect(trouble).toEqual([]);
      await page.getByRole("button", { name: "Dry run" }).click();
      await page.getByText("400", { exact: true }).waitFor();
      for (const summary of await page.locator("summary").all()) await summary.click();
      await expectPlain(page, 2);
    });

    test("a refusal stands beside the event's JSON: one that was pasted, and one from the playground", async () => {
      const { page, trouble } = await open(manager);
      const organization = page.url();
      const events = ["ticket.resolved", "order.paid"].map((eventType) => ({
        ...{ eventType, category: "other", actor: { externalId: "crm-user-1", displayName: hostile } },
      }));
      const response = await post("events", { events: [...events, { ...events[0], actor: {} }] }, tenant.key);
      expect(response.status).toBe(207);
      await page.goto(`${organization}/requests/${response.headers.get("x-request-id")}`);
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
      if (isShown) await picture(page, "request");

      await go(page, "Playground");
      await page.getByLabel("eventType").fill("order.paid");
      await page.getByLabel("Key").fill(tenant.key);
      await page.getByRole("button", { name: "Send", exact: true }).click();
      await page.getByRole("link", { name: /^Explain its request/ }).click();
      await page.locator("mark").getByText('"order.paid"').waitFor();
      expect(trouble.filter((line) => !line.includes("403 (Forbidden)"))).toEqual([]);
    });

    test("a new key's first calls work as they are printed", async () => {
      const { page } = await open(manager);
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
    });

    test("a page of a long list without what was asked for leads to the next one", async () => {
      const long = await createTenant(other.admin, { name: "Long" });
      const { token } = await insertToken(other, "viewer", long.organizationId);
      const record = (i: number) => ({
        ...{
          _id: ids.next("rec"),
          requestId: ids.next("req"),
          receivedAt: new Date(),
          organizationId: long.organizationId,
        },
        ...{ rpc: "Events", protocol: "rest" as const, status: 400, connectCode: "invalid_argument", accepted: 0 },
        ...{
          code: i === 0 ? ("missing_actor" as const) : ("invalid_body" as const),
          reason: "events: must be an array",
        },
        ...{
          appId: long.appId,
          keyId: "key_",
          keyHint: "wp_live_…",
          durationMs: 1,
          expiresAt: new Date(Date.now() + 600_000),
        },
      });
      await requestCollection(other.app.db).insertMany(Array.from({ length: 2_600 }, (_, i) => record(i)));
      const { page, trouble } = await open(token);
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
    });

    test("the page's policy allows no script and no style within it, and nothing from elsewhere", async () => {
      const { page, trouble } = await shared.visit(home);
      expect(trouble).toEqual([]);
      const refused = await page.evaluate<string[]>(`new Promise((resolve) => {
        const refused = [];
        addEventListener("securitypolicyviolation", ({ effectiveDirective }) => {
          refused.push(effectiveDirective);
          if (refused.length === 4) resolve(refused.sort());
        });
        const add = (tag, members) => document.head.append(Object.assign(document.createElement(tag), members));
        add("script", { textContent: "document.title = 'owned'" });
        add("style", { textContent: "body { display: none }" });
        add("script", { src: "https://example.com/x.js" });
        add("img", { src: "https://example.com/x.png" });
      })`);
      expect(refused).toEqual(["img-src", "script-src-elem", "script-src-elem", "style-src-elem"]);
    });

    /** The last address of each kind. The pages of a kind differ in their ids only. */
    const oneOfEachKind = (links: readonly string[]) =>
      new Map(links.map((link) => [link.replaceAll(/[a-z]+_[0-9A-Za-z]{20,}/g, ""), link])).values();

    test("a viewer's token changes nothing, whatever is clicked, chosen, typed or opened", async () => {
      const viewer = (await insertToken(other, "viewer", tenant.organizationId)).token;
      const { page, trouble } = await open(viewer);
      await expect.poll(() => page.getByText(`${latencyMs} ms`, { exact: true }).count()).toBe(2);
      await page.getByText(/^Requests answered: 1,\d+, with an error: \d+$/).waitFor();
      const before = await auditCollection(other.app.db).countDocuments();
      const organization = page.url();
      const tryAll = async () => {
        for (const select of (await page.locator("main select").all()).reverse()) {
          await select.selectOption((await select.locator("option").last().getAttribute("value")) as string);
        }
        for (const button of await page.locator("main button:visible").all()) {
          await button.click({ timeout: 2_000 }).catch(() => {});
          await page.keyboard.press("Escape");
        }
        for (const input of await page.locator("main input:visible:not([type=password])").all()) {
          await input.fill("forbidden_event_type");
          await input.press("Enter");
        }
      };
      const ofManagers: ReadonlySet<string> = new Set(["audit", "tokens"]);
      for (const [path, title] of screens.filter(([path]) => !ofManagers.has(path))) {
        await page.goto(`${organization}/${path}`);
        await titled(page, title);
        await loaded(page);
        // What the screen links to, but not the pages of the documentation.
        const links = await page.evaluate<string[]>(
          `[...document.querySelectorAll("main a[href^='#']")].map(({ href }) => href)`,
        );
        await tryAll();
        for (const link of oneOfEachKind(links)) {
          await page.goto(link);
          await page.locator("main h1").waitFor();
          await tryAll();
        }
      }
      for (const [path, title] of screens.filter(([path]) => ofManagers.has(path))) {
        expect(await page.getByRole("navigation").getByRole("link", { name: title }).count()).toBe(0);
        await page.goto(`${organization}/${path}`);
        await page.getByRole("heading", { name: "Your role does not allow this" }).waitFor();
        expect(await page.locator("main button").count()).toBe(0);
      }
      expect(await page.locator("dialog").count()).toBe(0);
      // No call failed either: the browser would have complained.
      expect(trouble).toEqual([]);
      const foreign = await createTenant(other.admin, { name: "Other" });
      await page.goto(`${home}#/o/${foreign.organizationId}/keys`);
      await page.getByRole("alert").waitFor();
      expect(await page.locator("main button").count()).toBe(0);
      expect(await page.getByText("CRM Hub").count()).toBe(0);
      expect(await auditCollection(other.app.db).countDocuments()).toBe(before);
    });

    describe("with an OIDC issuer", () => {
      const stored = (page: Page) => page.evaluate<string>("JSON.stringify([sessionStorage, localStorage])");
      const leave = (page: Page) => page.getByRole("button", { name: /^Sign in with 127\.0\.0\.1:/ }).click();
      const allow = (page: Page) => page.getByRole("link", { name: "Allow" }).click();

      test("people sign in by code and PKCE, where they wanted to be, until they sign out", async () => {
        issuer.claims = { name: "Ada", roles: [`manager:${tenant.organizationId}`] };
        Object.assign(issuer, { givesRefreshToken: true, expiresInSeconds: 0 });
        const origins = [new URL(issuer.url).origin];
        const { page, trouble } = await shared.visit(`${home}#/o/${tenant.organizationId}/keys`, origins);
        await leave(page);
        await allow(page);
        await titled(page, "Apps and keys");
        expect(page.url()).toBe(`${home}#/o/${tenant.organizationId}/keys`);
        await page.getByText("Ada · Manager").waitFor();
        await go(page, "Overview");
        await page.getByText("Quota this month").waitFor();
        // Its token is always due here, so each call has a new one.
        expect(issuer.granted.slice(0, 2)).toEqual(["authorization_code", "refresh_token"]);
        expect(issuer.granted.filter((grant) => grant.startsWith("no"))).toEqual([]);
        issuer.expiresInSeconds = 600;
        await page.reload();
        await titled(page, "Overview");
        await page.getByRole("button", { name: "Sign out" }).click();
        await page.getByLabel("Access token").waitFor();
        expect(await stored(page)).not.toMatch(/eyJ|oken/);
        expect(trouble).toEqual([]);
        // The next user of the tab sees nothing of the last one.
        await signIn(page, (await insertToken(other, "viewer", tenant.organizationId)).token);
        await page.getByText("a viewer · Viewer").waitFor();
        expect(await page.getByRole("navigation").getByRole("link", { name: "Audit" }).count()).toBe(0);
      });

      test("an ID token is used where the console's client is the audience", async () => {
        Object.assign(issuer, { claims: { roles: "viewer" }, givesRefreshToken: false });
        const origins = [new URL(issuer.url).origin];
        const { page, trouble } = await shared.visit(`${other.app.url}/console/`, origins);
        await leave(page);
        await allow(page);
        await page.getByText("ada · Viewer").waitFor();
        const [token = ""] = /eyJ[^"\\]+/.exec(await stored(page)) ?? [];
        const claims = JSON.parse(Buffer.from(token.split(".")[1] ?? "", "base64url").toString());
        expect(claims).toMatchObject({ aud: issuer.clientId, nonce: expect.any(String) });
        expect(trouble).toEqual([]);
      });

      test("an ID token is renewed before it ends, although the access token lives longer", async () => {
        Object.assign(issuer, { claims: { roles: "viewer" }, givesRefreshToken: true, idTokenSeconds: 0 });
        const before = issuer.granted.length;
        const { page, trouble } = await shared.visit(`${other.app.url}/console/`, [new URL(issuer.url).origin]);
        await leave(page);
        await allow(page);
        await page.getByText("ada · Viewer").waitFor();
        expect(issuer.granted.slice(before, before + 2)).toEqual(["authorization_code", "refresh_token"]);
        expect(trouble).toEqual([]);
        Object.assign(issuer, { givesRefreshToken: false, idTokenSeconds: 600 });
      });

      test("a sign-in that fails says why, and leaves nothing in the address", async () => {
        issuer.claims = {};
        const { page } = await shared.visit(home);
        const says = async (reason: string | RegExp) => {
          await page.getByRole("alert").getByText(reason).waitFor();
          expect(new URL(page.url()).search).toBe("");
        };
        await leave(page);
        await page.getByRole("link", { name: "Refuse" }).click();
        await says(/refused the sign-in: access_denied \(Ada said no\)/);
        await leave(page);
        const answer = new URL((await page.getByRole("link", { name: "Allow" }).getAttribute("href")) as string);
        const forged = new URL(answer);
        forged.searchParams.set("state", "made-up");
        await page.goto(forged.href);
        await says(/belongs to no sign-in that this tab began/);
        // The forged answer ended the sign-in, so the real one comes too late.
        await page.goto(answer.href);
        await says(/belongs to no sign-in that this tab began/);
        await leave(page);
        const next = new URL((await page.getByRole("link", { name: "Allow" }).getAttribute("href")) as string);
        next.searchParams.set("code", answer.searchParams.get("code") as string);
        await page.goto(next.href);
        await says(/refused the sign-in: invalid_grant/);
        await leave(page);
        await allow(page);
        await page.getByRole("heading", { name: "Your role does not allow this" }).waitFor();
        await says(/lacks the claim 'roles'/);
        await page.getByRole("button", { name: "Sign out" }).click();
        await issuer.stop();
        await leave(page);
        await says(/does not answer, or does not let this page call it/);
        expect(await stored(page)).not.toContain("eyJ");
        await issuer.start(Number(new URL(issuer.url).port));
      });

      test("a token that expires under an open Live screen leads to the sign-in, and from there back", async () => {
        issuer.claims = { name: "Ada", roles: [`manager:${tenant.organizationId}`] };
        const { page } = await shared.visit(home);
        await leave(page);
        await allow(page);
        await titled(page, "Overview");
        // It is valid for some seconds yet, because clocks may differ by 30.
        const token = await issuer.sign({ aud: issuer.audience, exp: Math.floor(Date.now() / 1000) - 26 });
        await page.evaluate(`sessionStorage.setItem("ingest-console-credential", '${JSON.stringify({ token })}')`);
        await go(page, "Live");
        await page.getByRole("alert").getByText("Your access has expired. Sign in again.").waitFor();
        await leave(page);
        await allow(page);
        await isLive(page);
      });
    });

    test("Live shows every row once although the service is killed under it", async () => {
      const { page } = await open(manager);
      await go(page, "Live");
      await isLive(page);
      const types = ["ticket.before", "ticket.during", "ticket.after"];
      const each = (type: string, url: string) =>
        Promise.all([1, 2, 3].map((n) => send({ eventType: `${type}.${n}` }, tenant.key, url)));
      await each("ticket.before", service.url);
      await row(page, /ticket\.before\.1/).waitFor();
      await service.end("SIGKILL");
      await page.getByText("The connection is lost").waitFor();
      await each("ticket.during", other.app.url);
      service = await start();
      await each("ticket.after", service.url);
      for (const type of types) for (const n of [1, 2, 3]) await row(page, new RegExp(`${type}\\.${n}`)).waitFor();
      const all = (await row(page, /ticket\./).allInnerTexts()).map((text) => /ticket\.\w+\.\d/.exec(text)?.[0]);
      expect(all).toHaveLength(9);
      expect(new Set(all)).toEqual(new Set(types.flatMap((type) => [1, 2, 3].map((n) => `${type}.${n}`))));
    });
  },
);
