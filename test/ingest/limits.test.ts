import { beforeAll, describe, expect, test } from "vitest";
import { limits } from "../../src/limits.ts";
import { event, expectError, snapshot } from "../support/requests.ts";
import { bearer, protocols, type Send, useService } from "../support/service.ts";

/** Every limit of the contract, over every protocol: accepted at the limit, refused one beyond. */

const suite = useService();
beforeAll(() => suite.service.admin.allowTypes(suite.tenant.appId, ["*"]));

const x = (count: number) => "x".repeat(count);
/** One character, of two UTF-16 units and four UTF-8 bytes. */
const emoji = (count: number) => "🙂".repeat(count);
const nested = (levels: number): object => (levels === 1 ? {} : { a: nested(levels - 1) });
/** An object whose compact JSON has this many bytes. */
const ofBytes = (bytes: number) => ({ a: x(bytes - '{"a":""}'.length) });
/** Metrics whose compact JSON has this many bytes, in labels that are short enough. */
function metricsOfBytes(bytes: number): Record<string, string> {
  const metrics: Record<string, string> = {};
  const size = () => Buffer.byteLength(JSON.stringify(metrics));
  for (let i = 0; size() < bytes - 220; i++) metrics[`m${i}`] = x(190);
  metrics.last = "y";
  metrics.last += x(bytes - size());
  return metrics;
}
const ofActor = (actor: object) => event({ actor: { externalId: "limits", ...actor } });

const eventBounds: [bound: string, at: object, beyond: object][] = [
  ["the least duration", event({ duration: 0 }), event({ duration: -1 })],
  ["the greatest duration", event({ duration: 86_400 }), event({ duration: 86_401 })],
  ["eventType, at least 3 characters", event({ eventType: "abc" }), event({ eventType: "ab" })],
  ["eventType, at most 64 characters", event({ eventType: x(64) }), event({ eventType: x(65) })],
  ["inner characters of eventType", event({ eventType: "a_.-9" }), event({ eventType: "a b" })],
  ["the last character of eventType", event({ eventType: "ab9" }), event({ eventType: "ab." })],
  ["the first character of eventType", event({ eventType: "9ab" }), event({ eventType: "_ab" })],
  ["externalId", ofActor({ externalId: x(200) }), ofActor({ externalId: x(201) })],
  ["externalId, counted in characters", ofActor({ externalId: emoji(200) }), ofActor({ externalId: emoji(201) })],
  ["externalId, at least 1 character", ofActor({ externalId: "x" }), ofActor({ externalId: "" })],
  ["displayName", ofActor({ displayName: x(200) }), ofActor({ displayName: x(201) })],
  ["email", ofActor({ email: `a@${x(252)}` }), ofActor({ email: `a@${x(253)}` })],
  ["the form of an email", ofActor({ email: "a@b" }), ofActor({ email: "a.b" })],
  ["metadata", event({ metadata: ofBytes(16_384) }), event({ metadata: ofBytes(16_385) })],
  ["metadata, counted in UTF-8", event({ metadata: { a: emoji(4094) } }), event({ metadata: { a: emoji(4095) } })],
  ["depth of metadata", event({ metadata: nested(32) }), event({ metadata: nested(33) })],
  [
    "NUL in metadata, allowed in a value but not in a key",
    event({ metadata: { a: "\0" } }),
    event({ metadata: { "a\0": 1 } }),
  ],
];

const snapshotBounds: [bound: string, at: object, beyond: object][] = [
  ["snapshotType", snapshot({ snapshotType: x(64) }), snapshot({ snapshotType: x(65) })],
  ["the number of metrics", snapshot({ metrics: { a: 0 } }), snapshot({ metrics: {} })],
  ["metrics", snapshot({ metrics: metricsOfBytes(16_384) }), snapshot({ metrics: metricsOfBytes(16_385) })],
  ["a label", snapshot({ metrics: { a: x(200) } }), snapshot({ metrics: { a: x(201) } })],
  [
    "a label, counted in characters",
    snapshot({ metrics: { a: emoji(200) } }),
    snapshot({ metrics: { a: emoji(201) } }),
  ],
  [
    "a measure's label",
    snapshot({ metrics: { a: { value: 1, label: x(200) } } }),
    snapshot({ metrics: { a: { value: 1, label: x(201) } } }),
  ],
  ["metadata of a snapshot", snapshot({ metadata: ofBytes(16_384) }), snapshot({ metadata: ofBytes(16_385) })],
  ["NUL in a metric's name", snapshot({ metrics: { a: 1 } }), snapshot({ metrics: { "a\0": 1 } })],
];

describe.each(Object.entries(protocols))("over %s", (_name, send: Send) => {
  test.each(eventBounds)("%s", async (_bound, at, beyond) => {
    const accepted = await send(suite.url, "events", { events: [at] }, bearer(suite.tenant.key));
    expect(accepted.error, accepted.error?.message).toBeUndefined();
    const refused = await send(suite.url, "events", { events: [event(), beyond] }, bearer(suite.tenant.key));
    expectError(suite.url, refused, "invalid_body");
    expect(refused.error?.message).toMatch(/^events\[1\]\./);
  });

  test.each(snapshotBounds)("%s", async (_bound, at, beyond) => {
    const accepted = await send(suite.url, "snapshots", at, bearer(suite.tenant.key));
    expect(accepted.error, accepted.error?.message).toBeUndefined();
    expectError(suite.url, await send(suite.url, "snapshots", beyond, bearer(suite.tenant.key)), "invalid_body");
  });
});

describe("over REST, where a body may have any form", () => {
  const post = async (path: string, body: unknown) => {
    const headers = { "content-type": "application/json", ...bearer(suite.tenant.key) };
    const response = await fetch(`${suite.url}/api/v1/ingest/${path}`, {
      method: "POST",
      headers,
      body: JSON.stringify(body),
    });
    return { status: response.status, body: (await response.json()) as any };
  };

  test.each([
    ["events[0].eventType", event({ eventType: 7 })],
    ["events[0].eventType", event({ eventType: undefined })],
    ["events[0].category", event({ category: "cooking" })],
    ["events[0].category", event({ category: null })],
    ["events[0].actor", event({ actor: undefined })],
    ["events[0].actor", event({ actor: "crm-user-42" })],
    ["events[0].actor.externalId", event({ actor: { externalId: 42 } })],
    ["events[0].duration", event({ duration: 1.5 })],
    ["events[0].duration", event({ duration: "240" })],
    ["events[0].timestamp", event({ timestamp: 1_776_600_000 })],
    ["events[0].timestamp", event({ timestamp: "2026-04-19" })],
    ["events[0].timestamp", event({ timestamp: "2026-04-19T12:05:00+0200" })],
    ["events[0].timestamp", event({ timestamp: "0001-01-01T00:00:00+01:00" })],
    ["events[0].metadata", event({ metadata: [1] })],
    ["events[0].metadata", event({ metadata: "text" })],
    ["events[0]", null],
    ["events[0]", "an event"],
  ])("the error names %s when the event is %j", async (path, one) => {
    const { status, body } = await post("events", { events: [one] });
    expect([status, body.error.code]).toEqual([400, "invalid_body"]);
    expect(body.error.message.startsWith(`${path}: `), body.error.message).toBe(true);
  });

  test.each([
    ["metrics.a", snapshot({ metrics: { a: null } })],
    ["metrics.a", snapshot({ metrics: { a: true } })],
    ["metrics.a", snapshot({ metrics: { a: {} } })],
    ["metrics.a", snapshot({ metrics: { a: { value: "1" } } })],
    ["metrics.a", snapshot({ metrics: { a: [1] } })],
    ["metrics", snapshot({ metrics: [1] })],
    ["metrics", snapshot({ metrics: undefined })],
    ["snapshotType", snapshot({ snapshotType: undefined })],
  ])("the error names %s when the snapshot is %j", async (path, one) => {
    const { status, body } = await post("snapshots", one);
    expect([status, body.error.code]).toEqual([400, "invalid_body"]);
    expect(body.error.message.startsWith(`${path}`), body.error.message).toBe(true);
  });

  test("an error lists at most 20 issues", async () => {
    const twenty = await post("events", { events: Array.from({ length: 20 }, () => event({ duration: -1 })) });
    expect(twenty.body.error.message.match(/duration: /g)).toHaveLength(limits.issuesMax);
    expect(twenty.body.error.message).not.toContain("more");
    const more = await post("events", {
      events: Array.from({ length: 500 }, () => event({ duration: -1, category: "x" })),
    });
    expect(more.body.error.message.match(/(duration|category): /g)).toHaveLength(limits.issuesMax);
    expect(more.body.error.message).toMatch(/… and 980 more$/);
  });

  test("Ingest ignores unknown members, whatever their names", async () => {
    const strange = JSON.parse('{"__proto__":{"duration":-1},"constructor":1,"toString":null,"_bsontype":"ObjectId"}');
    const one = { ...event(), ...strange, actor: { externalId: "limits", _bsontype: "ObjectId" } };
    Object.defineProperty(one, "__proto__", { value: { duration: -1 }, enumerable: true });
    expect((await post("events", { events: [one], _bsontype: "Code" })).status).toBe(202);
  });
});
