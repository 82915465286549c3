import { createHash, randomUUID } from "node:crypto";
import { type Collection, MongoClient, MongoServerError } from "mongodb";
import { z } from "zod";
import { peerEvents } from "./rows.ts";

/**
 * A good engineer's code for the same contract: zod, the driver, one write for each request. It has no quota and no
 * rate limit, so it is faster than a complete service. The Fastify and the grpc-js peer share it.
 */
const actor = z
  .object({
    workerId: z.string().min(1).max(200).optional(),
    externalId: z.string().min(1).max(200).optional(),
    email: z.email().max(254).optional(),
    displayName: z.string().min(1).max(200).optional(),
  })
  .refine((ids) => ids.workerId ?? ids.externalId ?? ids.email, "one of workerId, externalId and email is needed");
const type = z.string().regex(/^[A-Za-z0-9][A-Za-z0-9_.-]{1,62}[A-Za-z0-9]$/);
const timestamp = z.iso.datetime({ offset: true }).optional();
const metadata = z
  .record(z.string(), z.unknown())
  .refine((value) => Buffer.byteLength(JSON.stringify(value)) <= 16_384, "metadata is too large")
  .optional();

export const eventsBody = z.object({
  events: z
    .array(
      z.object({
        eventType: type,
        category: z.enum(["communication", "project_management", "code", "calendar", "design", "ai_tools", "other"]),
        actor,
        timestamp,
        duration: z.int().min(0).max(86_400).optional(),
        metadata,
      }),
    )
    .min(1)
    .max(500),
});

export const snapshotBody = z.object({
  snapshotType: type,
  actor,
  timestamp,
  metrics: z.record(
    z.string(),
    z.union([
      z.number(),
      z.string().max(200),
      z.object({ value: z.number(), unit: z.string().max(200).optional(), label: z.string().max(200).optional() }),
    ]),
  ),
  metadata,
});

export interface PeerKey {
  readonly _id: string;
  readonly hash: string;
  readonly organizationId: string;
  readonly app: { readonly id: string; readonly slug: string; readonly name: string; readonly allow: string[] };
}

interface PeerWorker {
  readonly _id: string;
  readonly organizationId: string;
  readonly appId: string;
  readonly externalId: string;
}

interface PeerClaim {
  readonly _id: string;
  readonly fingerprint: string;
  readonly answer?: unknown;
  readonly expiresAt: Date;
}

/** A refusal with its HTTP status. */
export class Refusal extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

export type EventsBody = z.infer<typeof eventsBody>;
export type SnapshotBody = z.infer<typeof snapshotBody>;

export interface EventsAnswer {
  readonly requestId: string;
  readonly accepted: number;
  readonly rejected: number;
  readonly batchLimit: number;
  readonly results: {
    readonly accepted: readonly { readonly eventType: string; readonly timestamp: string }[];
    readonly rejected: readonly never[];
  };
}

const idOf = (prefix: string) => `${prefix}_${randomUUID()}`;
const sha256 = (text: string) => createHash("sha256").update(text).digest("base64url");

export class ByHand {
  readonly #keys: Collection<PeerKey>;
  readonly #workers: Collection<PeerWorker>;
  readonly #events: Collection<{ _id: string; [name: string]: unknown }>;
  readonly #cards: Collection<{ _id: string; [name: string]: unknown }>;
  readonly #claims: Collection<PeerClaim>;

  private constructor(client: MongoClient) {
    const db = client.db();
    this.#keys = db.collection("keys");
    this.#workers = db.collection("workers");
    this.#events = db.collection(peerEvents.name);
    this.#cards = db.collection("snapshots");
    this.#claims = db.collection("idempotency");
  }

  /** Opens the database of `uri`, with indexes for the same listings as the service. */
  static async open(uri: string): Promise<ByHand> {
    const client = new MongoClient(uri, {
      writeConcern: { w: "majority", journal: true },
      maxPoolSize: 100,
      ignoreUndefined: true,
    });
    const db = client.db();
    await db.collection("keys").createIndex({ hash: 1 }, { unique: true });
    await db.collection("workers").createIndex({ organizationId: 1, appId: 1, externalId: 1 }, { unique: true });
    await db.collection(peerEvents.name).createIndexes([...peerEvents.indexes]);
    await db.collection("idempotency").createIndex({ expiresAt: 1 }, { expireAfterSeconds: 0 });
    return new ByHand(client);
  }

  async authenticate(authorization: string | undefined): Promise<PeerKey> {
    const key = /^bearer (wp_live_[0-9a-f]{32})$/i.exec(authorization ?? "")?.[1];
    if (key === undefined) throw new Refusal(401, "no usable Authorization header");
    const found = await this.#keys.findOne({ hash: sha256(key) });
    if (found === null) throw new Refusal(401, "the key does not exist");
    return found;
  }

  async ingestEvents(caller: PeerKey, idempotencyKey: string | undefined, body: EventsBody): Promise<EventsAnswer> {
    for (const { eventType } of body.events) {
      const allowed = caller.app.allow.some((entry) =>
        entry.endsWith("*") ? eventType.startsWith(entry.slice(0, -1)) : entry === eventType,
      );
      if (!allowed) throw new Refusal(403, `${eventType} is not whitelisted`);
    }
    return this.#once(caller, idempotencyKey, body, async () => {
      const workers = await this.#workersOf(
        caller,
        body.events.map((event) => event.actor.externalId ?? ""),
      );
      const receivedAt = new Date();
      const requestId = idOf("req");
      const rows = body.events.map((event) => ({
        _id: idOf("evt"),
        organizationId: caller.organizationId,
        appId: caller.app.id,
        workerId: workers.get(event.actor.externalId ?? ""),
        requestId,
        kind: "event",
        type: event.eventType,
        category: event.category,
        timestamp: event.timestamp === undefined ? receivedAt : new Date(event.timestamp),
        receivedAt,
        durationSeconds: event.duration,
        metadata: event.metadata,
      }));
      if (rows.length === 1) await this.#events.insertOne(rows[0] as (typeof rows)[number]);
      else await this.#events.insertMany(rows, { ordered: false });
      return {
        requestId,
        accepted: rows.length,
        rejected: 0,
        batchLimit: 500,
        results: {
          accepted: rows.map((row) => ({ eventType: row.type, timestamp: row.timestamp.toISOString() })),
          rejected: [],
        },
      };
    });
  }

  async ingestSnapshot(caller: PeerKey, idempotencyKey: string | undefined, body: SnapshotBody) {
    return this.#once(caller, idempotencyKey, body, async () => {
      const externalId = body.actor.externalId ?? "";
      const workerId = (await this.#workersOf(caller, [externalId])).get(externalId) as string;
      const receivedAt = new Date();
      const requestId = idOf("req");
      const row = {
        organizationId: caller.organizationId,
        appId: caller.app.id,
        workerId,
        requestId,
        timestamp: body.timestamp === undefined ? receivedAt : new Date(body.timestamp),
        receivedAt,
        metrics: body.metrics,
        metadata: body.metadata,
      };
      await this.#events.insertOne({ _id: idOf("evt"), kind: "snapshot", type: body.snapshotType, ...row });
      const _id = `${workerId}/${caller.app.id}/${body.snapshotType}`;
      try {
        await this.#cards.updateOne(
          { _id, timestamp: { $lte: row.timestamp } },
          { $set: { snapshotType: body.snapshotType, ...row } },
          { upsert: true },
        );
      } catch (error) {
        // The stored card is newer.
        if (!(error instanceof MongoServerError) || error.code !== 11_000) throw error;
      }
      return {
        requestId,
        ok: true,
        snapshotType: body.snapshotType,
        worker: { id: workerId, displayName: externalId },
      };
    });
  }

  /** Finds workers, creates missing ones, and finds those that others have just created. */
  async #workersOf(caller: PeerKey, externalIds: readonly string[]): Promise<Map<string, string>> {
    const wanted = [...new Set(externalIds)];
    const scope = { organizationId: caller.organizationId, appId: caller.app.id };
    const find = async () => {
      const filter =
        wanted.length === 1 ? { ...scope, externalId: wanted[0] as string } : { ...scope, externalId: { $in: wanted } };
      const found = await this.#workers.find(filter, { projection: { externalId: 1 } }).toArray();
      return new Map(found.map((worker) => [worker.externalId, worker._id]));
    };
    const known = await find();
    const missing = wanted.filter((externalId) => !known.has(externalId));
    if (missing.length === 0) return known;
    try {
      await this.#workers.insertMany(
        missing.map((externalId) => ({ _id: idOf("wrk"), ...scope, externalId })),
        { ordered: false },
      );
    } catch (error) {
      if (!(error instanceof MongoServerError) || error.code !== 11_000) throw error;
    }
    return find();
  }

  /** Claims, runs, and remembers the answer; removes the claim after a failure. */
  async #once<T>(
    caller: PeerKey,
    idempotencyKey: string | undefined,
    body: unknown,
    work: () => Promise<T>,
  ): Promise<T> {
    if (idempotencyKey === undefined) return work();
    const _id = `${caller._id}:${idempotencyKey}`;
    const fingerprint = sha256(JSON.stringify(body));
    try {
      await this.#claims.insertOne({ _id, fingerprint, expiresAt: new Date(Date.now() + 600_000) });
    } catch (error) {
      if (!(error instanceof MongoServerError) || error.code !== 11_000) throw error;
      const claim = await this.#claims.findOne({ _id });
      if (claim?.fingerprint !== fingerprint) throw new Refusal(400, "the Idempotency-Key was used otherwise");
      if (claim.answer === undefined) throw new Refusal(409, "the first request is still under way");
      return claim.answer as T;
    }
    try {
      const answer = await work();
      await this.#claims.updateOne({ _id }, { $set: { answer } });
      return answer;
    } catch (error) {
      await this.#claims.deleteOne({ _id });
      throw error;
    }
  }
}
