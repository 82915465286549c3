import { parseEvents, parseSnapshot } from "../ingest/schema.ts";
import { limits } from "../limits.ts";

export interface SourceKind {
  readonly name: "event" | "snapshot";
  /** Without the base. */
  readonly path: string;
  readonly requestRecordsMax: number;
  /** Returns the paths of ignored members. @throws Fault invalid_body with the issues. */
  readonly validate: (value: unknown) => readonly string[];
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
