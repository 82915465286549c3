import { parseEvents, parseSnapshot } from "../ingest/schema.ts";
import { limits } from "../limits.ts";

/** What the lines of a file are, and how they are sent. */
export interface SourceKind {
  readonly name: "event" | "snapshot";
  /** The REST path, without the base. */
  readonly path: string;
  /** Lines that one request takes. */
  readonly requestRecordsMax: number;
  /** The paths of members that the service would ignore. @throws Fault invalid_body that says what does not fit. */
  readonly validate: (value: unknown) => readonly string[];
  /** The body of a request with these lines, each as JSON. */
  readonly bodyOf: (lines: readonly string[]) => string;
}

export const sourceKinds: Readonly<Record<SourceKind["name"], SourceKind>> = {
  event: {
    name: "event",
    path: "/api/v1/ingest/events",
    requestRecordsMax: limits.eventsMax,
    validate(event) {
      const ignored: string[] = [];
      parseEvents({ events: [event] }, { receivedAt: new Date(), ignored });
      return ignored.map((path) => path.replace("events[0].", ""));
    },
    bodyOf: (events) => `{"events":[${events.join(",")}]}`,
  },
  snapshot: {
    name: "snapshot",
    path: "/api/v1/ingest/snapshots",
    requestRecordsMax: 1,
    validate(snapshot) {
      const ignored: string[] = [];
      parseSnapshot(snapshot, { receivedAt: new Date(), ignored });
      return ignored;
    },
    bodyOf: ([snapshot = ""]) => snapshot,
  },
};
