import { createHash, randomBytes } from "node:crypto";
import { cpus, totalmem } from "node:os";
import { parseArgs } from "node:util";
import type { Db } from "mongodb";
import { newToken } from "../../src/admin/tokens.ts";
import { createIdSource, type IdPrefix } from "../../src/ids.ts";
import { accessTokenCollection } from "../../src/store/access-tokens.ts";
import { apps } from "../../src/store/apps.ts";
import { auditEntries } from "../../src/store/audit.ts";
import { keys } from "../../src/store/keys.ts";
import { organizations } from "../../src/store/organizations.ts";
import { requests } from "../../src/store/requests.ts";
import { workers } from "../../src/store/workers.ts";
import { percentiles } from "./load.ts";
import { openStage } from "./stage.ts";
import { writeSection } from "./table.ts";

const usage = `npm run bench:admin -- [--rows N] [--calls N] [--write]
  --rows N    keys, workers, recorded requests and audit entries of one organisation (default 100000);
              it has a tenth as many apps, and there are as many organisations as apps
  --calls N   calls of each page (default 100)
  --write     put the table into docs/performance.md, between its marks`;

const { values } = parseArgs({
  options: {
    rows: { type: "string", default: "100000" },
    calls: { type: "string", default: "100" },
    write: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const rows = Number(values.rows);
const calls = Number(values.calls);
const barMs = 50;
/** Calls of one access token: its rate is 100 a second. */
const callsOfToken = 50;

const stage = await openStage();
try {
  const db = stage.client.db("ingest");
  const { organizationId, appId } = await fill(db);
  const { url } = await stage.startService({ ADMIN_ON_PUBLIC_PORT: "1" });
  const get = await createGet(db, url);
  const table = ["| list | rows | first page: p50, p99 ms | middle page | last page | |", "|---|--:|--:|--:|--:|---|"];
  console.log(table.join("\n"));
  const ofOrganization = `/organizations/${organizationId}`;
  for (const [name, path, member] of [
    ["ListOrganizations", "/organizations", "organizations"],
    ["ListApps", `${ofOrganization}/apps`, "apps"],
    ["ListKeys of one app", `/apps/${appId}/keys`, "keys"],
    ["ListWorkers", `${ofOrganization}/workers`, "workers"],
    ["ListWorkers by name", `${ofOrganization}/workers?name=worker%201`, "workers"],
    ["ListWorkers by a name that nobody has", `${ofOrganization}/workers?name=nobody`, "workers"],
    ["ListWorkers by an external id", `${ofOrganization}/workers?externalId=user-7`, "workers"],
    ["ListRequests", `${ofOrganization}/requests`, "requests"],
    ["ListRequests by app and code", `${ofOrganization}/requests?appId=${appId}&code=invalid_body`, "requests"],
    ["ListRequests by a code that none has", `${ofOrganization}/requests?code=quota_exceeded`, "requests"],
    ["ListAuditEntries", "/audit", "entries"],
    ["ListAuditEntries of an organisation", `/audit?organizationId=${organizationId}`, "entries"],
    ["ListAuditEntries by an actor", "/audit?actor=tok_bench", "entries"],
    ["ListTokens of a role", "/tokens?role=viewer", "tokens"],
  ] as const) {
    const { listed, places } = await walk(get, path, member);
    const pages: string[] = [];
    let worstMs = 0;
    for (const place of places) {
      const latenciesMs: number[] = [];
      for (let call = -10; call < calls; call++) {
        const { ms } = await get(withPlace(path, place));
        if (call >= 0) latenciesMs.push(ms);
      }
      const { p50Ms, p99Ms } = percentiles(latenciesMs);
      worstMs = Math.max(worstMs, p50Ms);
      pages.push(`${p50Ms.toFixed(1)}, ${p99Ms.toFixed(1)}`);
    }
    const bar = `p50 below ${barMs} ms: ${worstMs < barMs ? "met" : "**not met**"}`;
    const line = `| ${[name, listed, ...pages, ...Array(3 - pages.length).fill(""), bar].join(" | ")} |`;
    table.push(line);
    console.log(line);
  }
  const { version } = await stage.client.db("admin").command({ buildInfo: 1 });
  const note = [
    new Date().toISOString().slice(0, 10),
    `${cpus().length} × ${cpus()[0]?.model.trim()}, ${Math.round(totalmem() / 2 ** 30)} GB, shared by the service, mongod ${version} and the caller`,
    `${calls} calls of each page of 100 rows over REST, one after the other`,
  ].join("; ");
  console.log(note);
  const flags = process.argv.slice(2).join(" ");
  const text = `\`npm run bench:admin${flags === "" ? "" : ` -- ${flags}`}\`: ${note}.\n\n${table.join("\n")}`;
  if (values.write) await writeSection("admin", text);
} finally {
  await stage.close();
}

/** An organisation with a tenth as many apps as rows; the first app has all keys. */
async function fill(db: Db) {
  const ids = createIdSource();
  const createdAt = new Date();
  const expiresAt = new Date(Date.now() + 30 * 86_400_000);
  const plan = { api: true, quotaEventsPerMonth: 1e6, keyRequestsPerSecond: 60, organizationRequestsPerSecond: 600 };
  const organizationId = ids.next("org");
  const appId = ids.next("app");
  const insert = async (collection: string, prefix: IdPrefix, count: number, rowOf: (i: number) => object) => {
    for (let from = 0; from < count; from += 10_000) {
      const batch = Array.from({ length: Math.min(10_000, count - from) }, (_, i) => ({
        _id: ids.next(prefix) as never,
        ...rowOf(from + i),
      }));
      await db.collection(collection).insertMany(batch, { ordered: false, writeConcern: { w: 1 } });
    }
  };
  const hash = () => createHash("sha256").update(randomBytes(16)).digest("base64url");
  await insert(organizations.name, "org", rows / 10 - 2, (i) => ({ name: `Organisation ${i}`, ...plan, createdAt }));
  await insert(organizations.name, "org", 1, () => ({ _id: organizationId, name: "Large", ...plan, createdAt }));
  const appOf = (slug: string) => ({ organizationId, slug, name: `App ${slug}`, allow: ["ticket.*"], createdAt });
  await insert(apps.name, "app", 1, () => ({ _id: appId, ...appOf("app-first") }));
  await insert(apps.name, "app", rows / 10 - 1, (i) => appOf(`app-${i}`));
  await insert(keys.name, "key", rows, (i) => ({
    ...{ organizationId, appId, hash: hash(), hint: "wp_live_ab12…", name: `Key ${i}`, scopes: ["ingest"] },
    ...{ expiresAt: null, revokedAt: null, createdAt },
  }));
  await insert(workers.name, "wrk", rows, (i) => ({
    ...{ organizationId, displayName: `Worker ${i}`, email: `worker-${i}@example.com`, createdAt },
    links: [{ connection: "custom:app-first", key: `${appId}/user-${i}`, appId, externalId: `user-${i}` }],
  }));
  await insert(requests.name, "rec", rows, (i) => ({
    ...{ requestId: ids.next("req"), receivedAt: createdAt, rpc: "Events", protocol: "rest", status: 400 },
    ...{ code: i % 2 === 0 ? "invalid_body" : "missing_actor", connectCode: "invalid_argument", reason: "events: …" },
    ...{ organizationId, appId, keyId: ids.next("key"), keyHint: "wp_live_ab12…", accepted: 0, durationMs: 1 },
    expiresAt,
  }));
  await insert(auditEntries.name, "aud", rows, (i) => ({
    at: createdAt,
    actor: { kind: "token", id: "tok_bench", name: "bench", role: "operator" },
    ...{ peer: "127.0.0.1", requestId: ids.next("req"), action: "CreateKey", organizationId, target: ids.next("key") },
    ...{ after: JSON.stringify({ name: `Key ${i}` }), expiresAt },
  }));
  await insert("accessTokens", "tok", rows / 10, (i) => ({
    ...{ hash: hash(), hint: "wp_adm_ab12…", name: `Token ${i}`, role: "viewer", organizationId },
    ...{ expiresAt: null, revokedAt: null, createdAt },
  }));
  return { organizationId, appId };
}

type Get = (path: string) => Promise<{ readonly body: any; readonly ms: number }>;

/** Calls with operator tokens in turn, so that no rate slows the measurement. */
async function createGet(db: Db, url: string): Promise<Get> {
  const ids = createIdSource();
  const made = Array.from({ length: 10 }, () =>
    newToken(ids.next("tok"), { name: "bench", role: "operator" }, new Date()),
  );
  await accessTokenCollection(db).insertMany(made.map(({ document }) => document));
  let count = 0;
  return async (path) => {
    const { secret } = made[Math.floor(count++ / callsOfToken) % made.length] as (typeof made)[number];
    const startedMs = performance.now();
    const response = await fetch(`${url}/api/v1/admin${path}`, { headers: { authorization: `Bearer ${secret}` } });
    const body: any = await response.json();
    const ms = performance.now() - startedMs;
    if (response.status !== 200) throw new Error(`${path}: ${JSON.stringify(body)}`);
    return { body, ms };
  };
}

function withPlace(path: string, place: string): string {
  return `${path}${path.includes("?") ? "&" : "?"}pageToken=${place}`;
}

/** Reads the whole list. Returns the tokens of its first, middle and last page of 100 rows. */
async function walk(get: Get, path: string, member: string) {
  const places = [""];
  let listed = 0;
  for (let place = ""; ;) {
    const { body } = await get(`${withPlace(path, place)}&pageSize=500`);
    listed += body[member].length;
    place = body.nextPageToken;
    if (place === "") break;
    places.push(place);
  }
  const [middle, last] = [places[Math.floor(places.length / 2)], places.at(-1)];
  return { listed, places: places.length === 1 ? [""] : ["", middle as string, last as string] };
}
