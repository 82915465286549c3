import { describe, expect, test } from "vitest";
import { EventCategory, MetricUnit } from "../../src/gen/ingest/v1/ingest_pb.js";
import { eventCategories, metricUnits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { eventCollection } from "../../src/store/events.ts";
import { event, expectError, snapshot, unique } from "../support/requests.ts";
import { bearer, protocols, useService } from "../support/service.ts";

/** The words of contract.md. Callers of the product's SDK send exactly these. */
const categories = ["communication", "project_management", "code", "calendar", "design", "ai_tools", "other"];
const units = ["count", "minutes", "ratio", "percentage", "score"];

const suite = useService();

test("the table and the proto have the contract's words", () => {
  expect(eventCategories).toEqual(categories);
  expect(metricUnits).toEqual(units);
  const names = (values: object) => Object.keys(values).filter((name) => !/^\d+$/.test(name));
  expect(names(EventCategory)).toEqual(["UNSPECIFIED", ...categories.map((word) => word.toUpperCase())]);
  expect(names(MetricUnit)).toEqual(["UNSPECIFIED", ...units.map((word) => word.toUpperCase())]);
});

describe.each(Object.entries(protocols))("over %s", (_name, send) => {
  const post = (rpc: "events" | "snapshots", body: unknown) => send(suite.url, rpc, body, bearer(suite.tenant.key));

  test("every category is accepted and stored as written", async () => {
    const type = unique("ticket.words");
    const events = categories.map((category) => event({ eventType: type, category }));
    expect((await post("events", { events })).body).toMatchObject({ accepted: categories.length, rejected: 0 });
    const rows = await eventCollection(suite.service.app.db).find({ type }).sort({ _id: 1 }).toArray();
    expect(rows.map(({ category }) => category)).toEqual(categories);
  });

  test("every unit is accepted and stored as written", async () => {
    const snapshotType = unique("tickets.units");
    const metrics = Object.fromEntries(units.map((unit, i) => [unit, { value: i, unit }]));
    expect((await post("snapshots", snapshot({ snapshotType, metrics }))).body).toMatchObject({ ok: true });
    expect(await cardCollection(suite.service.app.db).findOne({ snapshotType })).toMatchObject({ metrics });
  });

  test("any other category or unit is invalid_body, and nothing is stored", async () => {
    const type = unique("ticket.strange");
    const refused = await post("events", { events: [event({ eventType: type, category: "support" })] });
    expectError(suite.url, refused, "invalid_body");
    const metrics = { open: { value: 1, unit: "days" } };
    expectError(suite.url, await post("snapshots", snapshot({ snapshotType: type, metrics })), "invalid_body");
    expect(await eventCollection(suite.service.app.db).countDocuments({ type })).toBe(0);
  });
});
