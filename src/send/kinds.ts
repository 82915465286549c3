import { parseEvents, parseSnapshot } from "../ingest/schema.ts";
import { limits } from "../limits.ts";

export interface SourceKind {
  readonly name: "event" | "snapshot";
  /** Without the base. */
  readonly path: string;
  readonly requestRecordsMax: number;
  /**
   * Returns the paths of ignored members. Only the service compares times with now: its clock counts.
   * @throws Fault invalid_body with the issues.
   */
  readonly validate: (value: unknown) => readonly string[];
  /** What is sent for a valid line. Its id makes the service recognise the line when it comes again. */
  readonly sentAs: (value: object, id: string) => SentLine;
  readonly bodyOf: (lines: readonly SentLine[]) => string;
}

export interface SentLine {
  readonly json: string;
  /** The service remembers it for ten minutes; an event id, as long as it keeps the event. */
  readonly idempotencyKey?: string;
}

export const sourceKinds: Readonly<Record<SourceKind["name"], SourceKind>> = {
  event: {
    name: "event",
    path: "/api/v1/ingest/events",
    requestRecordsMax: limits.eventsMax,
    validate(event) {
      const ignored: string[] = [];
      parseEvents({ events: [event] }, { ignored });
      return ignored.map((path) => path.replace("events[0].", ""));
    },
    sentAs(event: { eventId?: unknown }, id) {
      return { json: JSON.stringify({ ...event, eventId: event.eventId ?? id }) };
    },
    bodyOf: (events) => `{"events":[${events.map(({ json }) => json).join(",")}]}`,
  },
  snapshot: {
    name: "snapshot",
    path: "/api/v1/ingest/snapshots",
    requestRecordsMax: 1,
    validate(snapshot) {
      const ignored: string[] = [];
      parseSnapshot(snapshot, { ignored });
      return ignored;
    },
    sentAs: (snapshot, id) => ({ json: JSON.stringify(snapshot), idempotencyKey: id }),
    bodyOf: ([snapshot]) => snapshot?.json ?? "",
  },
};
