import type { Db } from "mongodb";
import { z } from "zod";
import { Fault, unavailable } from "../errors.ts";
import { workerErased, workerNotFound } from "../ingest/actor.ts";
import type { FairTurns, FairTurnsOptions } from "../access/fair-turns.ts";
import type { Call } from "../ingest/services.ts";
import { invalidMember } from "../ingest/validate.ts";
import { timelineLimits } from "../limits.ts";
import type { Card } from "../store/snapshots.ts";
import type { EventRow } from "../store/events.ts";
import { listCards, listEvents, type PageBounds } from "../store/timeline.ts";
import { displayNamesOf, findWorker } from "../store/workers.ts";
import { listEventsSchema, listSnapshotsSchema, parseQuery } from "./schema.ts";
import type { Stage } from "../tracing.ts";
import type { Tokens } from "./tokens.ts";

export interface EventsPage {
  /** Newest first. */
  readonly events: readonly EventRow[];
  /** Empty when there is nothing more. */
  readonly nextPageToken: string;
}

export interface NamedCard extends Card {
  readonly displayName: string;
}

export interface SnapshotsPage {
  /** Newest first. */
  readonly snapshots: readonly NamedCard[];
  /** Empty when there is nothing more. */
  readonly nextPageToken: string;
}

export interface TimelineServices {
  readonly db: Db;
  readonly tokens: Tokens;
  readonly erasedNameSecret: Buffer;
  readonly stage: Stage;
  /** Counts pages. */
  readonly turns: FairTurns;
}

/** How many pages one organisation reads at once. One page may scan 10 000 rows and become 1 MB of text. */
export const pageTurns: FairTurnsOptions = {
  sharedCostMax: 1,
  aloneCostMax: 4,
  heavyCost: 1,
  // Writing a page as text takes as long as reading it, and blocks all others. So they get most of the time.
  restTimes: 4,
  largeCost: Number.POSITIVE_INFINITY,
  largeMax: 0,
  waitMs: 10_000,
};

/** The contents of page tokens. A token is sealed, so a mismatch means that an older version made it. */
const rowPlace = z.tuple([z.string()]).transform(([key]) => Buffer.from(key, "base64url"));
const cardPlace = z.tuple([z.number(), z.string()]).transform(([ms, id]) => ({ timestamp: new Date(ms), id }));

/** ListEvents and ListSnapshots for every protocol. Each query sees only the caller's organisation. */
export class TimelineCalls {
  readonly #services: TimelineServices;

  constructor(services: TimelineServices) {
    this.#services = services;
  }

  /** @throws Fault invalid_body, worker_not_found. */
  async listEvents(call: Call, query: unknown): Promise<EventsPage> {
    const { pageSize, pageToken, ...filters } = parseQuery(listEventsSchema, query);
    const { organizationId } = call.principal;
    const scope = ["ListEvents", organizationId, sorted(filters)];
    const from = this.#place(rowPlace, scope, pageToken);
    const workerId = await this.#worker(organizationId, filters.workerId);
    const page = await this.#inTurn(call, () =>
      listEvents(this.#services.db, { ...filters, workerId, organizationId, from }, boundsOf(pageSize)),
    );
    return { events: page.rows, nextPageToken: this.#token(scope, page.next && [page.next.toString("base64url")]) };
  }

  /** @throws Fault invalid_body, worker_not_found. */
  async listSnapshots(call: Call, query: unknown): Promise<SnapshotsPage> {
    const { pageSize, pageToken, ...filters } = parseQuery(listSnapshotsSchema, query);
    const { organizationId } = call.principal;
    const scope = ["ListSnapshots", organizationId, sorted(filters)];
    const from = this.#place(cardPlace, scope, pageToken);
    const workerId = await this.#worker(organizationId, filters.workerId);
    const page = await this.#inTurn(call, () =>
      listCards(this.#services.db, { ...filters, workerId, organizationId, from }, boundsOf(pageSize)),
    );
    const names = await displayNamesOf(
      this.#services.db,
      organizationId,
      page.rows.map(({ workerId }) => workerId),
    );
    const snapshots = page.rows.map((card) => ({ ...card, displayName: names.get(card.workerId) ?? card.workerId }));
    return { snapshots, nextPageToken: this.#token(scope, page.next && [+page.next.timestamp, page.next.id]) };
  }

  #inTurn<T>({ principal: { caller }, start, wanted }: Call, read: () => Promise<T>): Promise<T> {
    const { turns, stage } = this.#services;
    const readIfWanted = async () => {
      if (!wanted()) throw unavailable(new Error("the caller has gone"));
      return read();
    };
    return stage(start, "read", () => turns.run(caller.organizationId, 1, readIfWanted));
  }

  #worker(organizationId: string, workerId: string | undefined): Promise<string | undefined> {
    const { db, erasedNameSecret } = this.#services;
    return resolveWorker(db, erasedNameSecret, organizationId, workerId);
  }

  #token(scope: unknown, place: unknown): string {
    return place === undefined ? "" : this.#services.tokens.seal(scope, place);
  }

  #place<T>(schema: z.ZodType<T>, scope: unknown, token: string | undefined): T | undefined {
    if (token === undefined) return undefined;
    const place = schema.safeParse(this.#services.tokens.open(scope, token));
    if (place.success) return place.data;
    const message = "must be an unchanged nextPageToken of the same call with the same filters";
    throw invalidMember("pageToken", message);
  }
}

/**
 * Returns the id of the worker, or of the one that took its place. It refuses an unknown worker: an empty list would make
 * the caller believe that the worker did nothing.
 * @throws Fault worker_not_found when the organisation has no worker with this id.
 */
export async function resolveWorker(
  db: Db,
  secret: Buffer,
  organizationId: string,
  workerId: string | undefined,
): Promise<string | undefined> {
  if (workerId === undefined) return undefined;
  const found = await findWorker(db, secret, organizationId, workerId);
  if (found !== undefined && found !== "erased") return found._id;
  const message = found === "erased" ? workerErased : workerNotFound(workerId);
  throw new Fault("worker_not_found", message, { issues: [{ path: "workerId", message }] });
}

const boundsOf = (rowsMax: number): PageBounds => ({
  rowsMax,
  bytesMax: timelineLimits.pageBytesMax,
  scannedRowsMax: timelineLimits.scannedRowsMax,
});

/** The given filters, sorted by name. */
const sorted = (filters: Readonly<Record<string, unknown>>) =>
  Object.entries(filters)
    .filter(([, value]) => value !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1));
