import { createHmac, randomBytes } from "node:crypto";
import type { RequestListener } from "node:http";
import { SignJWT } from "jose";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { Identity } from "../../src/access/identity.ts";
import { issuerTimes } from "../../src/access/issuer-keys.ts";
import { Oidc } from "../../src/access/oidc.ts";
import { type ErrorCode, Fault } from "../../src/errors.ts";
import { adminRest } from "../support/admin.ts";
import { Issuer, newSigningKey, type SigningKey } from "../support/issuer.ts";
import { bearer, protocols, startService } from "../support/service.ts";

const organizationId = "org_01HP3K5V4J3M9NVT8XZKQ9YQ2E";
const otherOrganizationId = "org_01HP3K5V4J3M9NVT8XZKQ9YQ2F";
const nowMs = Date.parse("2026-11-29T12:00:00.000Z");
const nowSeconds = nowMs / 1000;
const audience = "ingest";
const roleClaim = "https://example.org/roles";

let first: SigningKey;
let second: SigningKey;
let elliptic: SigningKey;
beforeAll(async () => {
  [first, second, elliptic] = await Promise.all([
    newSigningKey("first"),
    newSigningKey("second"),
    newSigningKey("elliptic", "ES256"),
  ]);
});

let issuer: Issuer;
let oidc: Oidc;
/** The clock of the process; tests move it. */
let clockMs: number;
let failures: string[];
beforeEach(async () => {
  issuer = await new Issuer([first]).start();
  clockMs = 5_000_000;
  failures = [];
  oidc = newOidc();
});
afterEach(() => issuer.stop());

const newOidc = (options: Partial<ConstructorParameters<typeof Oidc>[0]> = {}) =>
  new Oidc({
    ...{ issuer: issuer.url, audience, roleClaim, now: () => nowMs, monotonic: () => clockMs },
    onError: (error) => failures.push((error as Error).message),
    ...options,
  });

interface TokenOptions {
  readonly key?: SigningKey;
  readonly header?: Record<string, unknown>;
  readonly claims?: Record<string, unknown>;
}

const claimsOf = (changes: Record<string, unknown> = {}) => ({
  ...{ iss: issuer.url, aud: audience, sub: "user-1", name: "Ada", exp: nowSeconds + 600, [roleClaim]: "operator" },
  ...changes,
});

const signed = ({ key = first, header = {}, claims = {} }: TokenOptions = {}) =>
  new SignJWT(claimsOf(claims))
    .setProtectedHeader({ alg: key.jwk.alg as string, kid: key.kid, typ: "JWT", ...header })
    .sign(key.privateKey);

const base64url = (value: object) => Buffer.from(JSON.stringify(value)).toString("base64url");

async function refusal(token: string, by = oidc): Promise<Fault> {
  const fault = await by.find(token).then(
    () => expect.unreachable("the token was accepted"),
    (error: unknown) => error,
  );
  expect(fault).toBeInstanceOf(Fault);
  return fault as Fault;
}

async function expectRefused(token: string, code: ErrorCode, text: string, by = oidc): Promise<void> {
  const fault = await refusal(token, by);
  expect([fault.code, fault.message]).toEqual([code, expect.stringContaining(text)]);
  // A message never shows the token.
  for (const part of token.split(".")) if (part.length > 12) expect(fault.message).not.toContain(part);
}

async function expectUnavailable(token: string, by = oidc): Promise<Fault> {
  const fault = await refusal(token, by);
  expect(fault).toMatchObject({ code: "internal_error", unavailable: true });
  expect(fault.retryAfterSeconds).toBeGreaterThanOrEqual(1);
  return fault;
}

const expected: Identity = {
  ...{ kind: "oidc", id: "user-1", name: "Ada", role: "operator", organizationId: undefined },
  expiresAtMs: nowMs + 600_000,
};

describe("an OIDC token", () => {
  test("becomes an identity, and its issuer is asked for keys once", async () => {
    const all = await Promise.all(Array.from({ length: 20 }, async () => oidc.find(await signed())));
    expect(all).toEqual(all.map(() => expected));
    expect(issuer.asked).toEqual(["/realm/.well-known/openid-configuration", "/realm/keys"]);
    const several = await signed({ claims: { aud: ["account", audience] } });
    expect(await oidc.find(several)).toEqual(expected);
    issuer.published = [first, elliptic];
    clockMs += issuerTimes.unknownKeyMs;
    expect(await oidc.find(await signed({ key: elliptic }))).toEqual(expected);
  });

  test("names its owner by the best claim that it has", async () => {
    const nameOf = async (claims: Record<string, unknown>) =>
      (await oidc.find(await signed({ claims: { name: undefined, ...claims } }))).name;
    expect(await nameOf({ preferred_username: "ada", email: "ada@example.com" })).toBe("ada");
    expect(await nameOf({ name: " ", email: "ada@example.com" })).toBe("ada@example.com");
    expect(await nameOf({ name: 7 })).toBe("user-1");
    expect(await nameOf({ name: "x".repeat(5_000) })).toHaveLength(200);
  });

  const at = (seconds: number) => new Date((nowSeconds + seconds) * 1000).toISOString();
  test.each<[string, Record<string, unknown>, ErrorCode, string]>([
    ["for another audience", { aud: "other" }, "invalid_key", "its audience must be 'ingest'"],
    ["for several others", { aud: ["a", "ingest "] }, "invalid_key", "its audience must be 'ingest'"],
    ["without an audience", { aud: undefined }, "invalid_key", "it lacks the claim 'aud'"],
    ["of another issuer", { iss: "https://evil.example" }, "invalid_key", "it must be of the issuer 'http://127"],
    ["without an issuer", { iss: undefined }, "invalid_key", "it must be of the issuer"],
    ["without an expiry", { exp: undefined }, "invalid_key", "it lacks the claim 'exp'"],
    ["with an expiry that is a text", { exp: "never" }, "invalid_key", "its claim 'exp' is not valid"],
    ["that expired", { exp: nowSeconds - 31 }, "key_expired", `expired at ${at(-31)}`],
    ["that is not valid yet", { nbf: nowSeconds + 31 }, "invalid_key", `it is not valid before ${at(31)}`],
    ["without a subject", { sub: undefined }, "invalid_key", "it lacks the claim 'sub'"],
    ["with an empty subject", { sub: "" }, "invalid_key", "its claim 'sub' must be a text of 1 to 255"],
    ["with a subject that is a number", { sub: 7 }, "invalid_key", "its claim 'sub' must be a text of 1 to 255"],
    ["with half a character as the subject", { sub: "\ud800" }, "invalid_key", "its claim 'sub' must be a text"],
    ["with a huge subject", { sub: "x".repeat(256) }, "invalid_key", "its claim 'sub' must be a text of 1 to 255"],
  ])("%s is refused", async (_, claims, code, text) => {
    await expectRefused(await signed({ claims }), code, text);
  });

  test("may differ from the service's clock by 30 seconds, also while a stream runs", async () => {
    const identity = await oidc.find(await signed({ claims: { exp: nowSeconds - 29, nbf: nowSeconds + 30 } }));
    expect(() => oidc.checkExpiry(identity)).not.toThrow();
    expect(() => newOidc({ now: () => nowMs + 1_000 }).checkExpiry(identity)).toThrow(`expired at ${at(-29)}`);
    expect((await oidc.find(await signed({ claims: { exp: 1e300 } }))).expiresAtMs).toBeLessThan(8.64e15);
  });

  test("without a valid signature is refused, whatever its header says", async () => {
    const [head = "", payload = "", signature = ""] = (await signed()).split(".");
    const other = await signed({ claims: { sub: "user-2" } });
    await expectRefused(`${head}.${payload}.${other.split(".")[2]}`, "invalid_key", "its signature is wrong");
    await expectRefused(`${head}.${payload}.`, "invalid_key", "its signature is wrong");
    await expectRefused(`${head}.${base64url(claimsOf({ sub: "root" }))}.${signature}`, "invalid_key", "signature");
    await expectRefused(await signed({ key: { ...second, kid: "first" } }), "invalid_key", "its signature is wrong");
    for (const alg of ["none", "None", "HS256", "HS512", "RSA-OAEP", "", 7]) {
      const text = `${base64url({ alg, kid: "first" })}.${base64url(claimsOf())}`;
      // The public key as the secret: the classic confusion of algorithms.
      const secrets = [first.pem, first.jwk.n as string];
      const signatures = [
        "",
        ...secrets.map((secret) => createHmac("sha256", secret).update(text).digest("base64url")),
      ];
      for (const one of signatures) await expectRefused(`${text}.${one}`, "invalid_key", "The OIDC token is not valid");
    }
    const key = { jwk: first.jwk, jku: "https://evil.example/keys", x5u: "https://evil.example/keys" };
    await expectRefused(await signed({ key: second, header: key }), "invalid_key", "no key of its issuer");
    expect(issuer.asked.filter((path) => !path.startsWith("/realm/"))).toEqual([]);
  });

  test.each([
    ["with a header that is no JSON", () => `e30x.${base64url(claimsOf())}.x`],
    ["with a payload that is no JSON", () => `${base64url({ alg: "RS256" })}.xxxx.x`],
    ["with a payload that is a list", () => `${base64url({ alg: "RS256" })}.${base64url([])}.x`],
    [
      "with an unknown critical header",
      () =>
        `${base64url({ alg: "RS256", kid: "first", crit: ["x"], x: 1 })}.${base64url(claimsOf())}.${"A".repeat(342)}`,
    ],
  ])("%s is malformed", async (_, make) => {
    await expectRefused(make(), "invalid_key", "The OIDC token is not valid: it is malformed");
  });

  test("that is huge is refused before it is decoded", async () => {
    const token = await signed({ claims: { groups: randomBytes(12_000).toString("base64url") } });
    await expectRefused(token, "invalid_key", `it has ${token.length} characters; at most 16384 are allowed`);
    expect(issuer.asked).toEqual([]);
  });
});

test("a service with an issuer takes its tokens for administration, and never for ingest.v1", async () => {
  const env = { OIDC_ISSUER: issuer.url, OIDC_AUDIENCE: audience, OIDC_ROLE_CLAIM: roleClaim };
  const { app, log } = await startService({ env });
  try {
    const token = await signed({ claims: { exp: Math.floor(Date.now() / 1000) + 600 } });
    const answer = await adminRest(app.adminUrl, token, "GET", "/whoami");
    expect(answer.body).toMatchObject({ kind: "oidc", id: "user-1", name: "Ada", role: "operator" });
    expect([answer.status, answer.headers.get("x-ratelimit-limit")]).toEqual([200, "100"]);
    const refused = await protocols.REST?.(app.url, "ping", {}, bearer(token));
    expect(refused?.error?.code).toBe("invalid_key");
    await issuer.stop();
    const other = await signed({ key: second, claims: { exp: Math.floor(Date.now() / 1000) + 600 } });
    expect((await adminRest(app.adminUrl, other, "GET", "/whoami")).status).toBe(401);
    expect(log.join("")).not.toContain(token.split(".")[2]);
  } finally {
    await app.close();
  }
});

describe("the role claim", () => {
  const [manager, viewer] = [`manager:${organizationId}`, `viewer:${organizationId}`];
  const find = async (value: unknown, claim = roleClaim, name = claim) =>
    newOidc({ roleClaim: name }).find(await signed({ claims: { [roleClaim]: undefined, [claim]: value } }));

  test.each<[unknown, Identity["role"], string | undefined]>([
    ["operator", "operator", undefined],
    ["viewer", "viewer", undefined],
    [manager, "manager", organizationId],
    [[viewer], "viewer", organizationId],
    [["offline_access", viewer, manager, 7, null], "manager", organizationId],
    [[viewer, "viewer"], "viewer", undefined],
    [[manager, "viewer", "operator"], "operator", undefined],
    [[manager, "manager:org_1", "manager"], "manager", organizationId],
  ])("%j gives the role that includes the others", async (value, role, organization) => {
    expect(await find(value)).toMatchObject({ role, organizationId: organization });
  });

  test.each([
    ["missing", undefined, `lacks the claim '${roleClaim}'; it must hold operator, viewer, manager:org_…`],
    ["empty", [], "has no role in the claim"],
    ["unknown", ["admin", "Operator", "operator "], "has no role in the claim"],
    ["a manager of no organisation", "manager", "has no role in the claim"],
    ["a manager of a malformed organisation", "manager:org_1", "has no role in the claim"],
    ["an operator of one organisation", `operator:${organizationId}`, "has no role in the claim"],
    ["an object", { operator: true }, "has no role in the claim"],
    [
      "of two organisations",
      [manager, `manager:${otherOrganizationId}`],
      `(${manager}, manager:${otherOrganizationId}), and none includes the others`,
    ],
    ["of which none includes the other", [manager, "viewer"], "none includes the others"],
  ])("%s is forbidden_scope", async (_, value, text) => {
    const fault = await find(value).catch((error: unknown) => error as Fault);
    expect(fault).toMatchObject({ code: "forbidden_scope", message: expect.stringContaining(text) });
  });

  test("may lie in objects, whose names may have dots", async () => {
    for (const [value, claim, name] of [
      [{ roles: [viewer] }, "realm_access", "realm_access.roles"],
      [{ "app.example.org": { roles: [viewer] } }, "resource_access", "resource_access.app.example.org.roles"],
      [viewer, "a.b", "a.b"],
    ] as const) {
      expect(await find(value, claim, name), name).toMatchObject({ role: "viewer", organizationId });
    }
    await expect(find("operator", "roles", "roles.length")).rejects.toThrow("lacks the claim");
    await expect(find("operator", "roles", "constructor.name")).rejects.toThrow("lacks the claim");
  });
});

describe("the keys of the issuer", () => {
  test("are fetched again for an unknown key id, but not more often for made-up ones", async () => {
    await oidc.find(await signed());
    issuer.published = [second];
    await expectRefused(await signed({ key: second }), "invalid_key", "no key of its issuer has signed it");
    expect(issuer.fetches).toBe(1);
    clockMs += issuerTimes.unknownKeyMs;
    expect(await oidc.find(await signed({ key: second }))).toEqual(expected);
    expect(issuer.fetches).toBe(2);
    const madeUp = Array.from({ length: 50 }, (_, i) => signed({ key: { ...first, kid: `kid-${i}` } }));
    for (const token of madeUp) await expectRefused(await token, "invalid_key", "no key of its issuer");
    clockMs += issuerTimes.unknownKeyMs;
    await Promise.all(madeUp.map(async (token) => expectRefused(await token, "invalid_key", "no key of its issuer")));
    expect(issuer.fetches).toBe(3);
  });

  test("end when the issuer withdraws them, after ten minutes", async () => {
    const token = await signed();
    await oidc.find(token);
    issuer.published = [second];
    clockMs += issuerTimes.freshMs - 1;
    expect(await oidc.find(token)).toEqual(expected);
    clockMs += 1;
    await expectRefused(token, "invalid_key", "no key of its issuer");
  });

  test("serve for an hour while the issuer is down, and a token without them is unavailable, not refused", async () => {
    const token = await signed();
    await oidc.find(token);
    const { port } = new URL(issuer.url);
    await issuer.stop();
    clockMs += issuerTimes.usableMs - 1;
    expect(await oidc.find(token)).toEqual(expected);
    expect(failures).toEqual([expect.stringContaining(`The OIDC issuer '${issuer.url}' gives no keys: fetch failed`)]);
    clockMs += 1;
    const fault = await expectUnavailable(token);
    expect(fault.retryAfterSeconds).toBe(issuerTimes.retryMs / 1000);
    expect(fault.message).not.toContain(issuer.url);
    await expectUnavailable(await signed(), newOidc());

    issuer = await new Issuer([first]).start(Number(port));
    await expectUnavailable(token);
    expect(issuer.asked).toEqual([]);
    clockMs += issuerTimes.retryMs;
    expect(await oidc.find(token)).toEqual(expected);
  });

  test("of a slow issuer are waited for in bounded time, by all callers together", async () => {
    const waiting: (() => void)[] = [];
    issuer.trouble = (_, response) => {
      response.write("{");
      waiting.push(() => response.end());
    };
    const impatient = newOidc({ fetchWithinMs: 100 });
    const token = await signed();
    await Promise.all(Array.from({ length: 10 }, () => expectUnavailable(token, impatient)));
    expect(issuer.asked.length).toBeLessThanOrEqual(1);
    for (const end of waiting) end();
    issuer.trouble = undefined;
    await expectUnavailable(token, impatient);
    expect(await newOidc().find(token)).toEqual(expected);
  });

  test.each<[string, RequestListener | object, string]>([
    ["that answers an error", (_, response) => void response.writeHead(503).end("down"), "answers 503"],
    [
      "that leads elsewhere",
      (_, response) => void response.writeHead(302, { location: `${issuer.url}/x` }).end(),
      "gives no keys: fetch failed: unexpected redirect",
    ],
    ["that answers no JSON", (_, response) => void response.end("<html>"), "does not answer JSON"],
    ["that answers without end", (_, response) => endless(response), "answers more than 262144 bytes"],
    [
      "whose metadata is of another issuer",
      { issuer: "https://evil.example" },
      "is of the issuer 'https://evil.example'",
    ],
    ["whose keys lie on plain HTTP", { jwks_uri: "http://192.0.2.1/keys" }, "jwks_uri is 'http://192.0.2.1/keys'"],
    ["whose keys lie in a file", { jwks_uri: "file:///etc/passwd" }, "jwks_uri is 'file:///etc/passwd'"],
    ["whose metadata names no keys", { jwks_uri: null }, "jwks_uri"],
  ])("of an issuer %s are not used", async (_, trouble, reason) => {
    if (typeof trouble === "function") issuer.trouble = trouble as RequestListener;
    else issuer.metadata = trouble;
    const fault = await expectUnavailable(await signed());
    expect((fault.cause as Error).message).toContain(reason);
    expect(fault.message).not.toContain(reason);
  });

  const endless: (response: Parameters<RequestListener>[1]) => void = (response) => {
    const write = () => {
      while (!response.destroyed && response.write("x".repeat(16_384)));
    };
    response.on("drain", write);
    write();
  };
});
