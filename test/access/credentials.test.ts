import { randomBytes } from "node:crypto";
import { setImmediate as turn } from "node:timers/promises";
import type { Db, MongoClient, Timestamp } from "mongodb";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { newAccessToken } from "../../src/access/access-token.ts";
import { Credentials, type CredentialsOptions, tokenRequestsPerSecond } from "../../src/access/credentials.ts";
import { hashOfKey, hintOfKey } from "../../src/access/principal.ts";
import { RateLimiter } from "../../src/access/rate-limit.ts";
import { createIdSource } from "../../src/ids.ts";
import {
  type AccessTokenDocument,
  accessTokenCollection,
  accessTokens,
  findAccessTokens,
} from "../../src/store/access-tokens.ts";
import { createClient } from "../../src/store/database.ts";
import { findKeyUses, KeyUses } from "../../src/store/key-uses.ts";
import { migrate } from "../../src/store/migrations.ts";
import { spend } from "../../src/store/rate-buckets.ts";

const ids = createIdSource();
let client: MongoClient;
let db: Db;
/** The time of the latest news, as the change stream of an instance knows it. */
let heardTime: Timestamp;
beforeAll(async () => {
  client = createClient(inject("mongodbUri"));
  db = client.db(`credentials-${randomBytes(6).toString("hex")}`);
  await migrate(db, [accessTokens]);
  heardTime = (await db.command({ ping: 1 })).operationTime;
});
afterAll(async () => {
  await db.dropDatabase();
  await client.close();
});

const state = { limit: 1, remaining: 1 };
const noLimit = { take: () => ({ allowed: true, state }) as const, peek: () => state };
const instance = (options: Partial<CredentialsOptions> = {}) =>
  new Credentials({
    load: (hashes) => findAccessTokens(db, hashes, heardTime),
    ...{ oidc: undefined, limiter: noLimit, now: Date.now, used: () => {} },
    ...options,
  });

async function createToken(changes: Partial<AccessTokenDocument> = {}) {
  const token = newAccessToken();
  const document: AccessTokenDocument = {
    ...{ _id: ids.next("tok"), hash: hashOfKey(token), hint: hintOfKey(token), name: "ci", role: "operator" },
    ...{ expiresAt: null, revokedAt: null, createdAt: new Date() },
    ...changes,
  };
  await accessTokenCollection(db).insertOne(document);
  return { id: document._id, hint: document.hint, header: `Bearer ${token}` };
}

test("an access token is an identity with its role, organisation and expiry", async () => {
  const operator = await createToken({ name: "first" });
  expect(await instance().find(operator.header)).toEqual({
    ...{ kind: "token", id: operator.id, name: "first", role: "operator", organizationId: undefined },
    expiresAtMs: Number.POSITIVE_INFINITY,
  });
  const [organizationId, expiresAt] = [ids.next("org"), new Date(Date.now() + 60_000)];
  const manager = await createToken({ role: "manager", organizationId, expiresAt });
  const expected = { role: "manager", organizationId, expiresAtMs: expiresAt.getTime() };
  expect(await instance().find(manager.header.replace("Bearer", "bEARER "))).toMatchObject(expected);
  // Such a document must not reach every organisation.
  const broken = await createToken({ role: "manager" });
  await expect(instance().find(broken.header)).rejects.toThrow("has no organisation");
});

const digits = "0123456789abcdef".repeat(2);
test.each([
  [undefined, "missing_authorization", "send 'Authorization: Bearer wp_adm_…'"],
  ["", "missing_authorization", "send 'Authorization: Bearer wp_adm_…'"],
  ["Basic YTpi", "invalid_key", "is not of the form 'Bearer wp_adm_<32 hex digits><8 hex digits>'"],
  ["Bearer", "invalid_key", "is not of the form"],
  ["Bearer a b", "invalid_key", "is not of the form"],
  ["Bearer secret", "invalid_key", "must be wp_adm_ followed by 40 lower-case hex digits"],
  [`Bearer wp_adm_${digits}`, "invalid_key", "malformed: it has 32 characters after wp_adm_, and must have 40"],
  [`Bearer wp_adm_${digits}00000000`, "invalid_key", "malformed: its last 8 digits are not the checksum"],
  [`Bearer ${newAccessToken()}`, "invalid_key", "The access token does not exist"],
  [`Bearer wp_live_${digits}`, "forbidden_scope", "takes an access token: 'Authorization: Bearer wp_adm_…'"],
  [`Bearer wp_test_${digits}`, "forbidden_scope", "takes an access token"],
  ["Bearer wp_live_x", "forbidden_scope", "takes an access token"],
  ["Bearer eyJhbGciOiJSUzI1NiJ9.e30.c2ln", "invalid_key", "takes no OIDC tokens, because OIDC_ISSUER is not set"],
] as const)("%j is refused as %s, and its text is not quoted", async (header, code, text) => {
  const fault = await instance()
    .find(header)
    .catch((error: unknown) => error as Error);
  expect(fault).toMatchObject({ code, message: expect.stringContaining(text) });
  expect((fault as Error).message).not.toMatch(/[0-9a-f]{8}|secret|eyJ/);
});

test("a revocation acts at once on every instance, also on those that have just read the token", async () => {
  const withoutNews = instance({ load: (hashes) => findAccessTokens(db, hashes, undefined) });
  const instances = [instance(), instance(), withoutNews];
  for (let round = 0; round < 2; round++) {
    const { id, hint, header } = await createToken();
    const identities = await Promise.all(instances.map((one) => one.find(header)));
    await accessTokenCollection(db).updateOne({ _id: id }, { $set: { revokedAt: new Date() } });
    for (const [i, one] of instances.entries()) {
      const refusal = { code: "key_revoked", message: `The access token ${hint} was revoked.` };
      await expect(one.find(header)).rejects.toMatchObject(refusal);
      await expect(one.recheck(header, identities[i] as never)).rejects.toMatchObject(refusal);
    }
  }
});

test("an access token expires by the service's clock, on the millisecond", async () => {
  const expiresAt = new Date("2026-11-29T12:00:00.000Z");
  const { hint, header } = await createToken({ expiresAt });
  const at = (ms: number) => instance({ now: () => expiresAt.getTime() + ms }).find(header);
  expect(await at(-1)).toMatchObject({ expiresAtMs: expiresAt.getTime() });
  await expect(at(0)).rejects.toMatchObject({
    code: "key_expired",
    message: `The access token ${hint} expired at 2026-11-29T12:00:00.000Z.`,
  });
});

test("strangers with made-up tokens share reads that are bounded, and do not keep a known token waiting", async () => {
  const known = await createToken();
  let [running, runningMax, reads, gate] = [0, 0, 0, Promise.resolve()];
  const credentials = instance({
    async load(hashes) {
      reads++;
      runningMax = Math.max(runningMax, ++running);
      await gate;
      running--;
      return findAccessTokens(db, hashes, heardTime);
    },
  });
  await credentials.find(known.header);
  const opened = Promise.withResolvers<void>();
  gate = opened.promise;
  const answers: (string | undefined)[] = [];
  const ask = async (header: string) => {
    answers.push((await credentials.find(header).catch(({ code }: { code: string }) => code)) as string);
  };
  const strangers = Array.from({ length: 4_000 }, () => ask(`Bearer ${newAccessToken()}`));
  await turn();
  const owner = credentials.find(known.header).then(({ id }) => answers.push(id));
  opened.resolve();
  await Promise.all([...strangers, owner]);
  expect(new Set(answers)).toEqual(new Set(["invalid_key", "internal_error", known.id]));
  // Two reads were under way when its owner asked; the next one has it.
  const before = answers.slice(0, answers.indexOf(known.id)).filter((answer) => answer === "invalid_key");
  expect(before.length).toBeLessThanOrEqual(3 * 500);
  expect(runningMax).toBe(2);
  expect(reads).toBeLessThan(12);
});

test("a token may make 100 calls a second over all instances, and the refusal says when to try again", async () => {
  const { header } = await createToken();
  const onError = () => expect.unreachable();
  const nowMs = performance.now();
  const limiter = new RateLimiter({ now: () => nowMs, onError, share: (spendings) => spend(db, spendings) });
  const credentials = instance({ limiter });
  const identity = await credentials.find(header);
  for (let left = tokenRequestsPerSecond - 1; left >= 0; left--) {
    expect(credentials.take(identity)).toEqual({ limit: 100, remaining: left, of: "token" });
  }
  expect(() => credentials.take(identity)).toThrow(
    expect.objectContaining({
      ...{
        code: "rate_limited",
        retryAfterSeconds: 1,
        facts: { rateLimit: { limit: 100, remaining: 0, of: "token" } },
      },
      message: "The access token is limited to 100 requests a second; retry after 1 s.",
    }),
  );
  // An OIDC subject may look like a token's id.
  expect(credentials.take({ ...identity, kind: "oidc" })).toEqual({ limit: 100, remaining: 99, of: "token" });
  expect(credentials.take({ ...identity, kind: "cli" })).toBeUndefined();
  await limiter.stop();
});

test("the last use of a token is kept, also of a revoked one", async () => {
  const uses = new KeyUses(db, Date.now, () => expect.unreachable());
  const credentials = instance({ used: (id) => uses.used(id) });
  const [good, revoked] = [await createToken(), await createToken({ revokedAt: new Date() })];
  await credentials.find(good.header);
  await expect(credentials.find(revoked.header)).rejects.toMatchObject({ code: "key_revoked" });
  await uses.stop();
  expect([...(await findKeyUses(db, [good.id, revoked.id])).keys()].sort()).toEqual([good.id, revoked.id].sort());
});

test("a database that does not answer makes a token unavailable, not invalid", async () => {
  const away = createClient("mongodb://127.0.0.1:1/?replicaSet=rs0");
  try {
    const credentials = instance({ load: (hashes) => findAccessTokens(away.db("x"), hashes, undefined) });
    const { header } = await createToken();
    await expect(credentials.find(header)).rejects.toMatchObject({ code: "internal_error", unavailable: true });
  } finally {
    await away.close();
  }
});
