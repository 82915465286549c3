import type { Db } from "mongodb";
import { limits } from "../limits.ts";
import { type CollectionDefinition, insertDurably, retried } from "./database.ts";
import { type BatchHooks, GroupCommit } from "./group-commit.ts";

/** A row of the timeline: an event, or a snapshot as it arrived. */
export interface EventDocument {
  /** `evt_` and the request's ULID plus 1 + its index: storing a request twice changes nothing. */
  _id: string;
  organizationId: string;
  appId: string;
  workerId: string;
  requestId: string;
  kind: "event" | "snapshot";
  /** eventType, or snapshotType. */
  type: string;
  /** Of events only. */
  category?: string;
  timestamp: Date;
  receivedAt: Date;
  durationSeconds?: number;
  /** Of snapshots only. */
  metrics?: Record<string, unknown>;
  metadata?: Record<string, unknown>;
}

export const timelineOfOrganization = { organizationId: 1, timestamp: -1, _id: -1 } as const;
export const timelineOfWorker = { organizationId: 1, workerId: 1, timestamp: -1, _id: -1 } as const;

/** No more than these: each further index costs every write, and the timeline's other filters do without. */
export const events: CollectionDefinition = {
  name: "events",
  indexes: [
    { key: timelineOfOrganization, why: "the timeline of an organisation, newest first" },
    { key: timelineOfWorker, why: "the timeline of a worker, newest first" },
  ],
};

export const eventCollection = (db: Db) => db.collection<EventDocument>(events.name);

/** Stores the rows of requests; rows of concurrent requests share one write. */
export class EventStore {
  readonly #db: Db;
  readonly #writes: GroupCommit<readonly EventDocument[], boolean>;

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#writes = new GroupCommit<readonly EventDocument[], boolean>({
      name: "events",
      ownerOf: ([row]) => (row as EventDocument).organizationId,
      concurrencyMax: 2,
      fullConcurrencyMax: 6,
      batchWeightMax: limits.eventsMax,
      queueWeightMax: 50_000,
      ...hooks,
      run: async (requests) => {
        const outcomes = await insertDurably(db, events.name, requests.flat());
        let offset = 0;
        return requests.map((rows) => {
          const own = outcomes.slice(offset, (offset += rows.length));
          const failed = own.find((outcome) => "error" in outcome);
          if (failed !== undefined) return failed as { error: unknown };
          return { value: own.some((outcome) => "value" in outcome && outcome.value === "written") };
        });
      },
    });
  }

  /** Documents waiting. */
  get queued(): number {
    return this.#writes.queueWeight;
  }

  /**
   * Stores a request's rows durably; rows that are there already count as stored. Answers whether any was new.
   * @throws Fault unavailable when the database cannot be reached or the queue is full.
   */
  async insert(rows: readonly EventDocument[], wanted?: () => boolean): Promise<boolean> {
    return rows.length > 0 && this.#writes.submit(rows, rows.length, wanted);
  }

  /** Whether all of the rows are stored, durably. @throws Fault unavailable. */
  async has(organizationId: string, ids: readonly string[]): Promise<boolean> {
    const found = retried(() =>
      eventCollection(this.#db)
        .find({ _id: { $in: [...ids] }, organizationId }, { projection: { _id: 1 }, readConcern: "majority" })
        .toArray(),
    );
    return (await found).length === ids.length;
  }
}
