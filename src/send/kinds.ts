import { parseEvents, parseSnapshot } from "../ingest/schema.ts";
import { limits } from "../limits.ts";

/** What the lines of a file are, and how they are sent. */
export interface SourceKind {
  readonly name: "event" | "snapshot";
  /** The REST path, without the base. */
  readonly path: string;
  /** Lines that one request takes. */
  readonly requestRecordsMax: number;
  /** @throws Fault invalid_body that says what does not fit. */
  readonly validate: (value: unknown) => void;
  /** The body of a request with these lines, each as JSON. */
  readonly bodyOf: (lines: readonly string[]) => string;
}

export const sourceKinds: Readonly<Record<SourceKind["name"], SourceKind>> = {
  event: {
    name: "event",
    path: "/api/v1/ingest/events",
    requestRecordsMax: limits.eventsMax,
    validate: (event) => parseEvents({ events: [event] }, { receivedAt: new Date() }),
    bodyOf: (events) => `{"events":[${events.join(",")}]}`,
  },
  snapshot: {
    name: "snapshot",
    path: "/api/v1/ingest/snapshots",
    requestRecordsMax: 1,
    validate: (snapshot) => parseSnapshot(snapshot, { receivedAt: new Date() }),
    bodyOf: ([snapshot = ""]) => snapshot,
  },
};
