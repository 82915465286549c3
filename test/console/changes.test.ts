import { type Browser, chromium, type Locator, type Page, type Route } from "playwright-core";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { adminAnswerCollection } from "../../src/store/admin-answers.ts";
import { adminRest, insertToken } from "../support/admin.ts";
import { Keyboard } from "../support/browser.ts";
import { bearer, createTenant, insertKey, type Tenant, useService } from "../support/service.ts";
import { findTool } from "../support/tools.ts";

const executablePath = process.env.CHROMIUM ?? findTool("chromium");
/** A name that leads here. On plain HTTP, a browser trusts no page but those of this machine. */
const plainHost = "console.test";

describe.skipIf(executablePath === undefined)(
  "changes in the console in Chromium (skipped without it; CHROMIUM sets its path)",
  { timeout: 120_000 },
  () => {
    const suite = useService({ env: { ADMIN_ON_PUBLIC_PORT: "1" } });
    let browser: Browser;

    beforeAll(async () => {
      browser = await chromium.launch({
        executablePath: executablePath as string,
        args: ["--no-sandbox", `--host-resolver-rules=MAP ${plainHost} 127.0.0.1`],
      });
    });
    afterAll(() => browser?.close());

    const button = (page: Page, name: string | RegExp) => page.getByRole("button", { name, exact: true });
    const ofDialog = (page: Page, name: string) => page.locator("dialog").getByRole("button", { name, exact: true });
    const newToken = async ({ organizationId }: Tenant) =>
      (await insertToken(suite.service, "manager", organizationId)).token;
    /** The id of a request that is refused for its body. */
    async function refusedBy({ key }: Tenant) {
      const headers = { ...bearer(key), "content-type": "application/json" };
      const response = await fetch(`${suite.url}/api/v1/ingest/events`, { method: "POST", headers, body: "{}" });
      return response.headers.get("x-request-id");
    }
    const call = async (method: "GET" | "POST" | "PATCH", path: string, body?: object) => {
      const operator = await insertToken(suite.service, "operator");
      const answer = await adminRest(suite.url, operator.token, method, path, body);
      expect(answer.status, JSON.stringify(answer.body)).toBeLessThan(300);
      return answer.body;
    };

    async function signIn(page: Page, token: string): Promise<void> {
      await page.getByLabel("Access token").fill(token);
      await button(page, "Sign in").click();
      await page.getByRole("navigation").waitFor();
    }

    /** A manager's page on a screen of the tenant. */
    async function open(tenant: Tenant, screen: string, origin = suite.url) {
      const page = await browser.newPage();
      await page.clock.install();
      const show = (path: string) => page.goto(`${origin}/console/#/o/${tenant.organizationId}/${path}`);
      await show(screen);
      await signIn(page, await newToken(tenant));
      return { page, show };
    }

    /** The user was in another window for some seconds, so the page reads again what it shows. */
    async function comeBack(page: Page): Promise<void> {
      await page.clock.fastForward(10_000);
      await page.evaluate("dispatchEvent(new Event('visibilitychange'))");
    }

    /** Waits for what the page shows after some tries. */
    const later = (page: Page, shown: Locator) =>
      expect
        .poll(async () => {
          await page.clock.fastForward(5_000);
          return shown.count();
        })
        .toBeGreaterThan(0);

    /** Keeps the next answer of a call from the page until it is released. */
    async function hold(page: Page, path: string) {
      let release = () => {};
      const released = new Promise<void>((resolve) => (release = resolve));
      let arrived = () => {};
      const isThere = new Promise<void>((resolve) => (arrived = resolve));
      const wait = async (route: Route) => {
        const response = await route.fetch();
        arrived();
        await released;
        await route.fulfill({ response });
      };
      await page.route(`**/${path}`, wait, { times: 1 });
      return { isThere, release };
    }

    /** Sends an event of each of the workers. */
    async function sendEvents({ key }: Tenant, names: readonly string[]): Promise<void> {
      const events = names.map((name) => ({
        ...{ eventType: "ticket.resolved", category: "other", actor: { externalId: name, displayName: name } },
      }));
      const response = await fetch(`${suite.url}/api/v1/ingest/events`, {
        method: "POST",
        headers: { ...bearer(key), "content-type": "application/json" },
        body: JSON.stringify({ events }),
      });
      expect(response.status).toBe(202);
    }

    /** Workers that sent an event each. */
    async function newWorkers(tenant: Tenant, names: readonly string[]): Promise<string[]> {
      await sendEvents(tenant, names);
      const { workers } = await call("GET", `/organizations/${tenant.organizationId}/workers`);
      return names.map((name) => workers.find((one: { displayName: string }) => one.displayName === name).id);
    }

    test("a rotated key's secret stays, although its row expires and the page cannot read again", async () => {
      const { page } = await open(await createTenant(suite.service.admin), "keys");
      await button(page, /^Rotate /).click();
      await page.getByLabel(/^You get a new key now/).selectOption("Not at all");
      await ofDialog(page, "Rotate").click();
      await page.locator("td").getByText("Expired", { exact: true }).waitFor();
      const secret = page.locator("dialog pre").first();
      expect(await secret.innerText()).toMatch(/^wp_live_[0-9a-f]{32}$/);
      let readings = 0;
      await page.route("**/WhoAmI", (route) => {
        readings++;
        return route.abort();
      });
      await comeBack(page);
      // It reads a fourth time only after it has given up the first three.
      await expect
        .poll(async () => {
          await page.clock.fastForward(5_000);
          return readings;
        })
        .toBeGreaterThan(3);
      expect(await secret.innerText()).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await ofDialog(page, "Done").click();
      await page.locator("dialog").waitFor({ state: "detached" });
      await page.close();
    });

    test("a new secret is shown although its user cancelled, until its user closes it", async () => {
      const { page, show } = await open(await createTenant(suite.service.admin), "keys");
      const secret = page.locator("dialog pre").first();
      const rotate = async () => {
        const { isThere, release } = await hold(page, "RotateKey");
        await button(page, /^Rotate /).click();
        await ofDialog(page, "Rotate").click();
        await isThere;
        await ofDialog(page, "Cancel").click();
        return release;
      };
      (await rotate())();
      expect(await secret.innerText()).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await ofDialog(page, "Done").click();
      await page.locator("td").getByText("Rotating", { exact: true }).waitFor();
      const release = await rotate();
      await show("audit");
      await page.locator("h1").getByText("Audit", { exact: true }).waitFor();
      release();
      const shown = await secret.innerText();
      expect(shown).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await page.goBack();
      await page.locator("h1").getByText("Apps and keys").waitFor();
      expect(await secret.innerText()).toBe(shown);
      await ofDialog(page, "Done").click();
      await page.locator("dialog").waitFor({ state: "detached" });

      // No first call can be made of this address.
      await page.route("**/settings.json", (route) => route.fulfill({ json: { ingestUrl: "nonsense" } }));
      await page.reload();
      await button(page, "New key").click();
      await ofDialog(page, "Create").click();
      expect(await secret.innerText()).toMatch(/^wp_live_[0-9a-f]{32}$/);
      await page.close();
    });

    test("a change that somebody made while a dialog was open is not overwritten", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page, show } = await open(tenant, "keys");
      await button(page, "Edit the whitelist").click();
      await page.getByLabel("Event types that it may send").fill("order.*");
      await call("PATCH", `/apps/${tenant.appId}`, { allow: ["ticket.*", "deploy.*"] });
      await comeBack(page);
      await page.locator("li").getByText("deploy.*").waitFor();
      await ofDialog(page, "Save").click();
      await page.getByRole("alert").getByText("has changed since you read it: allow").waitFor();
      expect((await call("GET", `/apps/${tenant.appId}`)).allow).toEqual(["ticket.*", "deploy.*"]);

      const [worker] = await newWorkers(tenant, ["Ada"]);
      await show(`workers/${worker}`);
      // The dialog belonged to the other screen.
      await page.locator("dialog").waitFor({ state: "detached" });
      await button(page, "Rename").click();
      await page.getByLabel("Name", { exact: true }).fill("Ada Lovelace");
      await call("PATCH", `/workers/${worker}`, { displayName: "Ada King" });
      await comeBack(page);
      await page.locator("h1").getByText("Ada King").waitFor();
      await ofDialog(page, "Save").click();
      await page.getByRole("alert").getByText("has changed since you read it: displayName").waitFor();
      await page.close();
    });

    test("the receipt of an erasure stays, although its worker is gone", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [worker] = await newWorkers(tenant, ["Ada"]);
      const { page } = await open(tenant, `workers/${worker}`);
      await button(page, "Erase").click();
      await ofDialog(page, "Erase").click();
      await page.getByRole("heading", { name: "Receipt of the erasure" }).waitFor();
      await comeBack(page);
      await page.locator("main > .state").getByText("This could not be loaded").waitFor();
      await page.locator("dialog").getByText(/^ers_/).waitFor();
      await ofDialog(page, "Close").click();
      await page.locator("h1").getByText("Workers", { exact: true }).waitFor();
      await page.close();
    });

    test("the receipt of an erasure is shown although its user cancelled and went elsewhere", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [worker] = await newWorkers(tenant, ["Ada"]);
      const { page, show } = await open(tenant, `workers/${worker}`);
      const { isThere, release } = await hold(page, "EraseWorker");
      await button(page, "Erase").click();
      await ofDialog(page, "Erase").click();
      await isThere;
      await ofDialog(page, "Cancel").click();
      await show("audit");
      await page.locator("h1").getByText("Audit", { exact: true }).waitFor();
      release();
      await page.getByRole("heading", { name: "Receipt of the erasure" }).waitFor();
      await ofDialog(page, "Close").click();
      await page.locator("dialog").waitFor({ state: "detached" });
      expect(page.url()).toMatch(/\/audit$/);
      await page.close();
    });

    test("a reading that fails takes nothing from the page, and not what was typed there", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, `requests/${await refusedBy(tenant)}`);
      const body = page.getByLabel("Body of the request");
      await body.fill("{");
      await page.route("**/GetRequest", (route) => route.abort());
      await comeBack(page);
      await later(page, page.getByRole("alert").getByText("This may be old"));
      expect(await body.inputValue()).toBe("{");
      await page.unroute("**/GetRequest");
      await page.clock.fastForward(5_000);
      await page.getByRole("alert").waitFor({ state: "detached" });
      expect(await body.inputValue()).toBe("{");
      await page.close();
    });

    test("without a network a change fails at once, and is not sent once the network is back", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [worker] = await newWorkers(tenant, ["Ada"]);
      const { page } = await open(tenant, `workers/${worker}`);
      await button(page, "Erase").click();
      await page.context().setOffline(true);
      await ofDialog(page, "Erase").click();
      await page.locator("dialog").getByRole("alert").getByText("The service does not answer.").waitFor();
      await ofDialog(page, "Cancel").click();
      const asked: string[] = [];
      page.on("request", (request) => void asked.push(request.url()));
      await page.getByRole("navigation").getByRole("link", { name: "Workers", exact: true }).click();
      await later(page, page.getByRole("alert").getByText("The service does not answer."));
      await page.context().setOffline(false);
      await later(page, page.getByRole("link", { name: "Ada" }));
      expect(asked.filter((url) => url.endsWith("/EraseWorker"))).toEqual([]);
      expect((await call("GET", `/workers/${worker}`)).displayName).toBe("Ada");
      await page.close();
    });

    test("a click that is repeated after a lost answer makes one key, and shows its secret if it can", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, "keys");
      const loseAnswer = async (name: string) => {
        await page.route("**/CreateKey", (route) => route.fetch().then(() => route.abort()), { times: 1 });
        await button(page, "New key").click();
        await page.getByLabel("Name").fill(name);
        await page.getByLabel(/^Expires after days/).fill("30");
        await ofDialog(page, "Create").click();
        await page.locator("dialog").getByRole("alert").waitFor();
        await page.clock.fastForward(1_000);
      };
      await loseAnswer("shown");
      await ofDialog(page, "Create").click();
      await page.locator("dialog pre").first().waitFor();
      await ofDialog(page, "Done").click();
      await loseAnswer("lost");
      // The service does so after a minute.
      await adminAnswerCollection(suite.service.app.db).deleteMany({ _id: /\/secret$/ });
      await ofDialog(page, "Create").click();
      await page.getByRole("alert").getByText("Revoke it and make another one.").waitFor();
      const { keys } = await call("GET", `/apps/${tenant.appId}/keys`);
      const names = keys.flatMap(({ name = "" }: { name?: string }) => (name === "" ? [] : [name]));
      expect(names.toSorted()).toEqual(["lost", "shown"]);
      await page.close();
    });

    test("the console works on plain HTTP, where browsers lack some of their functions", async () => {
      const { origin } = Object.assign(new URL(suite.url), { hostname: plainHost });
      const tenant = await createTenant(suite.service.admin);
      const { page, show } = await open(tenant, "keys", origin);
      expect(await page.evaluate("isSecureContext")).toBe(false);
      await button(page, "New key").click();
      await ofDialog(page, "Create").click();
      await page.locator("dialog pre").first().waitFor();
      expect(await button(page, "Copy").count()).toBe(0);
      await ofDialog(page, "Done").click();
      await show("playground");
      await page.getByLabel("Key", { exact: true }).fill(tenant.key);
      await button(page, "Send").click();
      await page.getByText("202", { exact: true }).waitFor();
      await page.close();
    });

    test("a key for the timeline that no longer works is asked for again", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [ada, bob] = await newWorkers(tenant, ["Ada", "Bob"]);
      const { page, show } = await open(tenant, `workers/${ada}`);
      await button(page, "Read the timeline").click();
      await page.getByRole("cell", { name: "ticket.resolved" }).waitFor();
      const { keys } = await call("GET", `/apps/${tenant.appId}/keys`);
      const { id } = keys.find(({ name }: { name: string }) => name === "console");
      await call("POST", `/keys/${id}:revoke`, { wait: true });
      await show(`workers/${bob}`);
      await page.locator("h1").getByText("Bob").waitFor();
      await button(page, "Read the timeline").click();
      await page.getByRole("cell", { name: "ticket.resolved" }).waitFor();
      await page.close();
    });

    test("what arrives after a user signed out is not for the next one", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [worker] = await newWorkers(tenant, ["Ada"]);
      const { page, show } = await open(tenant, `workers/${worker}`);
      const leaveDuring = async (path: string, click: () => Promise<void>) => {
        const answer = page.waitForResponse(`**/${path}`);
        const { isThere, release } = await hold(page, path);
        await click();
        await isThere;
        await button(page, "Sign out").click();
        await page.getByLabel("Access token").waitFor();
        release();
        const response = await answer;
        await response.finished();
        await page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))");
        await signIn(page, await newToken(tenant));
        return response;
      };
      await leaveDuring("CreateKey", () => button(page, "Read the timeline").click());
      await page.locator("h1").getByText("Ada").waitFor();
      await button(page, "Read the timeline").waitFor();

      await show("playground");
      await page.getByLabel("eventType").fill("order.paid");
      await page.getByLabel("Key", { exact: true }).fill(tenant.key);
      const response = await leaveDuring("ingest/events", () => button(page, "Send").click());
      await show(`requests/${response.headers()["x-request-id"]}`);
      await page.getByLabel("Body of the request").waitFor();

      await show("keys");
      await leaveDuring("RotateKey", async () => {
        await button(page, /^Rotate /)
          .first()
          .click();
        await ofDialog(page, "Rotate").click();
        await ofDialog(page, "Cancel").click();
      });
      await page.locator("h1").getByText("Apps and keys").waitFor();
      expect(await page.locator("dialog").count()).toBe(0);
      await page.close();
    });

    test("a time in relation to now does not go stale, and the page of a request has the exact one", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, `requests/${await refusedBy(tenant)}`);
      const time = page.locator(".facts time");
      await time.getByText(/:\d\d \S+ \(\d+ seconds? ago\)$/).waitFor();
      await page.clock.fastForward(5 * 60_000);
      await time.getByText("(5 minutes ago)").waitFor();
      await page.close();
    });

    test("each choice closes the menu of a narrow window, and the focus goes to the content", async () => {
      const [one, two] = [await createTenant(suite.service.admin), await createTenant(suite.service.admin)];
      const page = await browser.newPage();
      await page.goto(`${suite.url}/console/#/o/${one.organizationId}`);
      await signIn(page, (await insertToken(suite.service, "operator")).token);
      await page.setViewportSize({ width: 400, height: 800 });
      const menu = page.getByRole("navigation");
      const choices = [
        () => menu.getByLabel("Organisation", { exact: true }).selectOption(two.organizationId),
        () => menu.getByRole("link", { name: "Overview" }).click(),
        () => menu.getByRole("link", { name: "Requests" }).click(),
      ];
      for (const choose of choices) {
        await button(page, "Menu").click();
        await choose();
        await menu.waitFor({ state: "hidden" });
        await expect.poll(() => page.evaluate("document.activeElement.id")).toBe("main");
      }
      expect(page.url()).toContain(two.organizationId);
      expect(await page.title()).toBe("Requests · Ingest console");
      await page.close();
    });

    test("the keyboard keeps its place on a button that goes off, and a link leads to the top", async () => {
      const tenant = await createTenant(suite.service.admin);
      await Promise.all(Array.from({ length: 25 }, () => insertKey(suite.service, tenant, {})));
      const { page } = await open(tenant, "keys");
      await button(page, "Next").waitFor();
      const keyboard = new Keyboard(page);
      await keyboard.open(/^Next$/);
      await page.getByText("Page 2").waitFor();
      await keyboard.isAt(/^Next$/);
      await keyboard.press("Enter");
      await page.getByText("Page 2").waitFor();

      const go = (name: string) => page.getByRole("navigation").getByRole("link", { name, exact: true }).click();
      await go("Playground");
      await page.getByLabel("eventType").waitFor();
      await go("Apps and keys");
      await button(page, "Next").waitFor();
      await page.evaluate("scrollTo(0, 400)");
      await go("Playground");
      await page.getByLabel("eventType").waitFor();
      expect(await page.evaluate("[scrollY, document.documentElement.scrollHeight > innerHeight + 400]")).toEqual([
        0,
        true,
      ]);
      await page.close();
    });

    test("an operator makes the first organisation, and a home that cannot be read has a way out", async () => {
      const page = await browser.newPage();
      await page.route("**/ListOrganizations", (route) => route.fulfill({ json: {} }), { times: 1 });
      await page.goto(`${suite.url}/console/`);
      await page.getByLabel("Access token").fill((await insertToken(suite.service, "operator")).token);
      await button(page, "Sign in").click();
      await button(page, "New organisation").click();
      await page.getByLabel("Name", { exact: true }).fill("The first");
      await ofDialog(page, "Create").click();
      const menu = page.getByRole("navigation");
      await menu
        .getByLabel("Organisation", { exact: true })
        .locator("option:checked", { hasText: "The first" })
        .waitFor({ state: "attached" });
      await page.locator("dialog").waitFor({ state: "detached" });
      await page.route("**/ListOrganizations", (route) => route.abort());
      await page.goto(`${suite.url}/console/?again`);
      await page.getByRole("alert").waitFor();
      await button(page, "Sign out").click();
      await page.getByLabel("Access token").waitFor();
      await page.close();
    });

    test("a manager renames its own organisation", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, "keys");
      await page.getByRole("navigation").getByRole("link", { name: "Organisations" }).click();
      await button(page, /^Edit /).click();
      await page.getByLabel("Name", { exact: true }).fill("Renamed");
      await ofDialog(page, "Save").click();
      await page.getByRole("link", { name: "Renamed" }).waitFor();
      await page.close();
    });

    test("a screen that cannot be loaded leaves the others whole", async () => {
      const { page } = await open(await createTenant(suite.service.admin), "keys");
      const go = (name: string) => page.getByRole("navigation").getByRole("link", { name, exact: true }).click();
      await page.route("**/assets/audit-*.js", (route) => route.abort(), { times: 1 });
      await go("Audit");
      await page.getByText("This screen could not be shown").waitFor();
      await go("Workers");
      await page.locator("h1").getByText("Workers", { exact: true }).waitFor();
      await page.close();
    });

    test("the overview alarms for what its user can mend, and says what it could not look at", async () => {
      const ago = (days: number) => new Date(Date.now() - days * 86_400_000).toISOString();
      const sender = { id: "key_1", name: "sender", scopes: ["SCOPE_INGEST"], createdAt: ago(90), lastUsedAt: ago(2) };
      const keys = [
        { ...sender, expiresAt: ago(-3) },
        { ...{ id: "key_2", name: "console", scopes: ["SCOPE_READ"] }, createdAt: ago(0), expiresAt: ago(-0.04) },
        { ...{ id: "key_3", name: "reader", scopes: ["SCOPE_READ"] }, createdAt: ago(90), lastUsedAt: ago(0) },
      ];
      const { page } = await open(await createTenant(suite.service.admin), "requests");
      const attention = page.locator(".attention li");
      const overview = page.getByRole("navigation").getByRole("link", { name: "Overview" });
      await page.route("**/ListKeys", (route) => route.fulfill({ json: { keys } }));
      await overview.click();
      await attention.getByText("The app CRM Hub has sent nothing for a day").waitFor();
      await attention.getByText("The key sender of CRM Hub expires").waitFor();
      await expect.poll(() => attention.count()).toBe(2);
      await page.route("**/ListKeys", (route) => route.abort());
      await page.reload();
      await later(page, attention.getByText("CRM Hub could not be looked at"));
      expect(await page.getByText("Nothing needs attention.").isVisible()).toBe(false);
      await page.close();
    });

    test("a merge that ends after its user went elsewhere does not lead back", async () => {
      const tenant = await createTenant(suite.service.admin);
      const [ada, bob] = await newWorkers(tenant, ["Ada", "Bob"]);
      const { page, show } = await open(tenant, `workers/${ada}`);
      await button(page, "Merge").click();
      await page.getByLabel("Id of the worker that stays").fill(bob as string);
      const { isThere, release } = await hold(page, "MergeWorkers");
      await ofDialog(page, "Merge").click();
      await isThere;
      await show("audit");
      await page.locator("h1").getByText("Audit", { exact: true }).waitFor();
      const again = page.waitForResponse("**/ListAuditEntries");
      release();
      await (await again).finished();
      await page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))");
      expect(page.url()).toMatch(/\/audit$/);
      await page.setViewportSize({ width: 400, height: 800 });
      await show(`workers/${ada}`);
      await page.getByText(`${ada} was merged into ${bob}`).waitFor();
      expect(await page.evaluate<number>("document.documentElement.scrollWidth - innerWidth")).toBeLessThanOrEqual(0);
      await page.close();
    });

    test("the playground shows the answer to the last click, and loses nothing that was composed", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, "playground");
      const key = page.getByLabel("Key", { exact: true });
      const type = page.getByLabel("eventType");
      const dryRun = page.getByText("dry run", { exact: true });
      await key.fill("wp_live_12345678…");
      await button(page, "Send").click();
      await page.locator("input:invalid").waitFor();
      await page.getByText("The answer appears here.").waitFor();
      await key.fill(` ${tenant.key} `);
      await type.fill("ticket.composed");
      const { isThere, release } = await hold(page, "ingest/events");
      const late = page.waitForResponse((response) => response.request().headers()["x-dry-run"] !== undefined);
      await button(page, "Dry run").click();
      await isThere;
      await button(page, "Send").click();
      await page.getByText("202", { exact: true }).waitFor();
      release();
      await (await late).finished();
      await page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))");
      expect(await dryRun.count()).toBe(0);
      await button(page, "Dry run").click();
      await dryRun.waitFor();

      await page.getByLabel("What to send").selectOption("A snapshot");
      await page.getByLabel("snapshotType").fill("tickets_composed");
      await page.getByLabel("What to send").selectOption("An event");
      expect(await type.inputValue()).toBe("ticket.composed");
      await type.fill("order.composed");
      await button(page, "Send").click();
      await page.getByRole("link", { name: /^Explain its request/ }).click();
      await page.locator("h1").getByText(/^req_/).waitFor();
      await page.goBack();
      expect(await type.inputValue()).toBe("order.composed");
      expect((await key.inputValue()).trim()).toBe(tenant.key);
      await page.getByLabel("What to send").selectOption("A snapshot");
      expect(await page.getByLabel("snapshotType").inputValue()).toBe("tickets_composed");

      await button(page, "Sign out").click();
      await signIn(page, await newToken(tenant));
      expect(await key.inputValue()).toBe("");
      await page.close();
    });

    test("Back finds a list as it was left: its filters, its page, and its search", async () => {
      const tenant = await createTenant(suite.service.admin);
      const keys = Array.from({ length: 25 }, () => insertKey(suite.service, tenant, {}));
      await Promise.all([...keys, newWorkers(tenant, ["Ada", "Bob"])]);
      const { page, show } = await open(tenant, "requests");
      const elsewhere = async () => {
        await page.getByRole("navigation").getByRole("link", { name: "Playground" }).click();
        await page.locator("h1").getByText("Playground").waitFor();
        await page.goBack();
      };
      await page.getByLabel("Code").selectOption("missing_actor");
      await page.getByLabel("Outcome").selectOption("Refused");
      await elsewhere();
      expect(await page.getByLabel("Code").inputValue()).toBe("missing_actor");
      expect(await page.getByLabel("Outcome").locator("option:checked").innerText()).toBe("Refused");

      await show("keys");
      await button(page, "Next").click();
      await page.getByText("Page 2").waitFor();
      await elsewhere();
      await page.getByText("Page 2").waitFor();

      await show("workers");
      await page.getByLabel("Find", { exact: true }).fill("Ad");
      await button(page, "Search").click();
      await page.getByRole("link", { name: "Bob" }).waitFor({ state: "detached" });
      await page.getByRole("link", { name: "Ada" }).click();
      await page.locator("h1").getByText("Ada").waitFor();
      await page.goBack();
      expect(await page.getByLabel("Find", { exact: true }).inputValue()).toBe("Ad");
      await page.getByRole("link", { name: "Ada" }).waitFor();
      expect(await page.getByRole("link", { name: "Bob" }).count()).toBe(0);
      // Only the page's memory has what is about a person.
      expect(await page.evaluate<string>("JSON.stringify([history.state, sessionStorage])")).not.toContain('Ad"');
      await page.close();
    });

    test("Live keeps its rows for Back, and its reader's place when others arrive", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page } = await open(tenant, "live");
      const isLive = () => page.getByRole("status").getByText("Live", { exact: true }).waitFor();
      const rows = page.getByRole("region", { name: "Live" });
      const scrollTop = () => page.evaluate("document.querySelector('.live').scrollTop");
      const names = (name: string, length: number) => Array.from({ length }, (_, i) => `${name} ${i}`);
      await isLive();
      await sendEvents(tenant, names("first", 30));
      await rows.getByRole("button").nth(15).waitFor();
      expect(await scrollTop()).toBe(0);
      await page.evaluate("document.querySelector('.live').scrollTop = 400");
      await sendEvents(tenant, names("second", 5));
      await expect.poll(scrollTop).toBe(600);

      await page.getByLabel("Filter").fill(" TICKET.Resolved ");
      await rows.getByRole("button").first().waitFor();
      await page.getByLabel("Filter").fill("nonsense");
      await page.getByText("Nothing fits the filter").waitFor();
      expect(await page.getByText("Send an event, and it appears here at once.").count()).toBe(0);
      await page.getByLabel("Filter").fill("");
      await rows.getByRole("button").first().click();
      await page.getByRole("link", { name: "Explain its request" }).click();
      await page.waitForURL(/\/requests\/req_/);
      await sendEvents(tenant, ["meanwhile"]);
      await page.goBack();
      await isLive();
      await expect.poll(() => page.evaluate("document.querySelector('.live ul').clientHeight / 40")).toBe(36);

      await button(page, "Pause").click();
      await page.getByRole("status").getByText("Paused").waitFor();
      await page.route("**/WatchRequests", () => {}, { times: 1 });
      await button(page, "Go on").click();
      await page.getByRole("status").getByText("Connecting").waitFor();
      await page.close();
    });

    test("Live opens another connection when one is silent, and says that arrivals are missing", async () => {
      const tenant = await createTenant(suite.service.admin);
      const { page, show } = await open(tenant, "keys");
      const isLive = () => page.getByRole("status").getByText("Live", { exact: true }).waitFor();
      let connections = 0;
      // This one never answers.
      await page.route("**/WatchRequests", () => void connections++, { times: 1 });
      await show("live");
      await expect.poll(() => connections).toBe(1);
      await page.clock.fastForward(15_000);
      await isLive();

      await button(page, "Pause").click();
      await page.route(
        "**/WatchRequests",
        (route) => {
          const body = route.request().postDataBuffer() as Buffer;
          const { organizationId } = JSON.parse(body.subarray(5).toString());
          const json = Buffer.from(JSON.stringify({ organizationId, resumeToken: "too old" }));
          const head = Buffer.alloc(5);
          head.writeUInt32BE(json.length, 1);
          return route.continue({ postData: Buffer.concat([head, json]) });
        },
        { times: 1 },
      );
      await button(page, "Go on").click();
      await page.getByRole("alert").getByText("Some arrivals are missing").waitFor();
      await isLive();
      await button(page, "Clear").click();
      await page.getByRole("alert").waitFor({ state: "detached" });
      await page.close();
    });
  },
);
