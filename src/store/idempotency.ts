import type { Db } from "mongodb";
import { liveOrganizationOf } from "../ids.ts";
import { type CollectionDefinition, durable, faultOfDatabase, insertDurably, retried } from "./database.ts";
import { type BatchHooks, GroupCommit } from "./group-commit.ts";

/** The decision for a request with an Idempotency-Key. Rows and answer follow from it alone. */
export interface ClaimDocument<Outcome = unknown> {
  /** `<key id>:<Idempotency-Key>`. */
  _id: string;
  /** Absent in claims of schema version 2, which expire within minutes of an update. */
  organizationId: string;
  /** SHA-256 of the validated request, base64url. */
  fingerprint: string;
  requestId: string;
  receivedAt: Date;
  outcome: Outcome;
  /** From then on the claim counts as gone, even if the server has not removed it yet. */
  expiresAt: Date;
}

export const claims: CollectionDefinition = {
  name: "idempotency",
  indexes: [{ key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired claims" }],
};

export const claimCollection = (db: Db) => db.collection<ClaimDocument>(claims.name);

export const claimId = (keyId: string, idempotencyKey: string) => `${keyId}:${idempotencyKey}`;

/**
 * Reads only claims that no failover can undo. If one were undone after its rows were stored, the next retry would
 * store them again under other ids.
 */
const readConcern = "majority";

interface Wanted {
  readonly organizationId: string;
  readonly id: string;
}

/** Matches claims of these organisations, and those of schema version 2. */
const ownedBy = (organizationIds: readonly string[]) => ({ $in: [...new Set(organizationIds), null] as string[] });

/** Events in the claims that wait. */
const queueWeightMax = 50_000;

/**
 * Reads and takes claims. `now` is the server's clock: by their machines' clocks, two instances could take a claim
 * twice.
 */
export class ClaimStore {
  readonly #db: Db;
  readonly #now: () => number;
  readonly #reads: GroupCommit<Wanted, ClaimDocument | undefined>;
  readonly #writes: GroupCommit<ClaimDocument, "written" | "duplicate">;

  constructor(db: Db, now: () => number, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#now = now;
    this.#reads = new GroupCommit({
      name: "claim reads",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax,
      ...hooks,
      run: async (wanted) => {
        const ids = wanted.map(({ id }) => id);
        const organizationId = ownedBy(wanted.map((one) => one.organizationId));
        const found = await retried(() =>
          claimCollection(db)
            .find({ _id: { $in: ids }, organizationId }, { readConcern })
            .toArray(),
        );
        const byId = new Map(found.map((claim) => [claim._id, claim]));
        return ids.map((id) => ({ value: byId.get(id) }));
      },
    });
    this.#writes = new GroupCommit({
      name: "claims",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax,
      ...hooks,
      run: (batch) => insertDurably(db, claims.name, batch),
    });
  }

  async find(organizationId: string, id: string, wanted?: () => boolean): Promise<ClaimDocument | undefined> {
    const claim = await this.#reads.submit({ organizationId, id }, 1, wanted);
    return claim !== undefined && claim.expiresAt.getTime() > this.#now() ? claim : undefined;
  }

  /**
   * Takes the claim, or returns the one that another request holds. Exactly one of any number of concurrent takers gets
   * its own claim back (by identity or by request id). Durable when it returns.
   * @param events in the claim's outcome, at least 1; organisations take turns by them.
   */
  async take(claim: ClaimDocument, events: number): Promise<ClaimDocument> {
    const filter = { _id: claim._id, organizationId: ownedBy([claim.organizationId]) };
    for (;;) {
      if ((await this.#writes.submit(claim, events)) === "written") return claim;
      const holder = await retried(() => claimCollection(this.#db).findOne(filter, { readConcern }));
      // The server removed it between the two calls.
      if (holder === null) continue;
      if (holder.requestId === claim.requestId || holder.expiresAt.getTime() > this.#now()) return holder;
      if (await this.#replaceExpired(holder, claim)) return claim;
    }
  }

  /** Prolongs the claim to at least `expiresAt`, durably. Returns false if the claim is gone or replaced. */
  async extend({ _id, organizationId, requestId }: ClaimDocument, expiresAt: Date): Promise<boolean> {
    const filter = { _id, organizationId, requestId };
    const { matchedCount } = await retried(() =>
      claimCollection(this.#db).updateOne(filter, { $max: { expiresAt } }, { writeConcern: durable }),
    );
    return matchedCount === 1;
  }

  async #replaceExpired(holder: ClaimDocument, claim: ClaimDocument): Promise<boolean> {
    try {
      const { _id, ...rest } = claim;
      const { organizationId, expiresAt } = holder;
      const result = await claimCollection(this.#db).replaceOne({ _id, organizationId, expiresAt }, rest, {
        writeConcern: durable,
      });
      return result.modifiedCount === 1;
    } catch (error) {
      throw faultOfDatabase(error);
    }
  }
}
