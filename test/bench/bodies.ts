import { limits } from "../../src/limits.ts";
import { freshId } from "./load.ts";

/** Prepared requests for every bench: from 1 000 workers, in the form of the API reference's example. */
const workerCount = 1_000;
export const externalId = (i: number) => `crm-user-${i % workerCount}`;

/** The event of the API reference. */
const event = (i: number) => ({
  eventType: "ticket.resolved",
  category: "project_management",
  actor: { externalId: externalId(i) },
  duration: 240,
  metadata: { ticket_id: `SUP-${i}` },
});

export const times = <T>(count: number, make: (i: number) => T): T[] =>
  Array.from({ length: count }, (_, i) => make(i));

export const single = times(workerCount, (i) => JSON.stringify({ events: [event(i)] }));
export const batches = times(8, (n) =>
  JSON.stringify({ events: times(limits.eventsMax, (i) => event(n * limits.eventsMax + i)) }),
);
/** The same events with ids, which are fresh in each request. */
export const named = (bodies: readonly string[]): string[] =>
  bodies.map((body) => {
    const { events } = JSON.parse(body) as { events: object[] };
    return JSON.stringify({ events: events.map((one, i) => ({ ...one, eventId: `${freshId}/${i}` })) });
  });
export const snapshots = times(workerCount, (i) =>
  JSON.stringify({
    snapshotType: "tickets_open",
    actor: { externalId: externalId(i) },
    metrics: { open: i, state: "busy", response: { value: 1.5, unit: "minutes", label: "First response" } },
  }),
);
