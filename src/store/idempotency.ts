import type { Db } from "mongodb";
import { type CollectionDefinition, durable, faultOfDatabase, insertDurably, retried } from "./database.ts";
import { type BatchHooks, GroupCommit } from "./group-commit.ts";

/** A decision taken for a request with an Idempotency-Key: what is stored and answered follows from it alone. */
export interface ClaimDocument<Outcome = unknown> {
  /** `<key id>:<Idempotency-Key>`. */
  _id: string;
  /** Of the validated request: base64url of a SHA-256. */
  fingerprint: string;
  requestId: string;
  receivedAt: Date;
  outcome: Outcome;
  /** After it the claim counts as gone, whether or not the server has swept it. */
  expiresAt: Date;
}

export const claims: CollectionDefinition = {
  name: "idempotency",
  indexes: [{ key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired claims" }],
};

export const claimCollection = (db: Db) => db.collection<ClaimDocument>(claims.name);

export const claimId = (keyId: string, idempotencyKey: string) => `${keyId}:${idempotencyKey}`;

/**
 * Only claims that no failover can take back are acted upon: rows stored for one that is rolled back afterwards would be
 * stored again, under other ids, by the next retry.
 */
const readConcern = "majority";

interface Wanted {
  readonly organizationId: string;
  readonly id: string;
}

interface SizedClaim {
  readonly organizationId: string;
  readonly claim: ClaimDocument;
}

/** Whose claim it is, and how much it holds. Organisations take turns by it. */
export interface ClaimSize {
  readonly organizationId: string;
  /** Events that the claim tells of, at least 1. */
  readonly events: number;
}

/** As many as the events of as many requests. */
const queueWeightMax = 50_000;

/**
 * Reads and takes claims; those of concurrent requests share a round trip. `now` is the server's clock, by which its sweep
 * goes: instances that judged by their machines' clocks would take a claim twice.
 */
export class ClaimStore {
  readonly #db: Db;
  readonly #now: () => number;
  readonly #reads: GroupCommit<Wanted, ClaimDocument | undefined>;
  readonly #writes: GroupCommit<SizedClaim, "written" | "duplicate">;

  constructor(db: Db, now: () => number, hooks: BatchHooks = {}) {
    this.#db = db;
    this.#now = now;
    this.#reads = new GroupCommit({
      name: "claim reads",
      ownerOf: ({ organizationId }) => organizationId,
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax,
      ...hooks,
      run: async (wanted) => {
        const ids = wanted.map(({ id }) => id);
        const found = await retried(() =>
          claimCollection(db)
            .find({ _id: { $in: ids } }, { readConcern })
            .toArray(),
        );
        const byId = new Map(found.map((claim) => [claim._id, claim]));
        return ids.map((id) => ({ value: byId.get(id) }));
      },
    });
    this.#writes = new GroupCommit({
      name: "claims",
      ownerOf: ({ organizationId }) => organizationId,
      concurrencyMax: 2,
      batchWeightMax: 1_000,
      queueWeightMax,
      ...hooks,
      run: (batch) =>
        insertDurably(
          db,
          claims.name,
          batch.map(({ claim }) => claim),
        ),
    });
  }

  /** The claim in force, or undefined. */
  async find(organizationId: string, id: string, wanted?: () => boolean): Promise<ClaimDocument | undefined> {
    const claim = await this.#reads.submit({ organizationId, id }, 1, wanted);
    return claim !== undefined && claim.expiresAt.getTime() > this.#now() ? claim : undefined;
  }

  /**
   * Takes the claim, or answers the one that another request holds. Of any number of concurrent takers exactly one gets
   * its own claim back (by identity or by request id). Durable when it returns.
   */
  async take(claim: ClaimDocument, { organizationId, events }: ClaimSize): Promise<ClaimDocument> {
    for (;;) {
      if ((await this.#writes.submit({ organizationId, claim }, events)) === "written") return claim;
      const holder = await retried(() => claimCollection(this.#db).findOne({ _id: claim._id }, { readConcern }));
      // Swept between the two.
      if (holder === null) continue;
      if (holder.requestId === claim.requestId || holder.expiresAt.getTime() > this.#now()) return holder;
      if (await this.#replaceExpired(holder, claim)) return claim;
    }
  }

  /**
   * Lets the claim stand until `expiresAt` at least. Durable when it returns. Does nothing, and answers false, when it is
   * gone or another has replaced it.
   */
  async extend({ _id, requestId }: ClaimDocument, expiresAt: Date): Promise<boolean> {
    const { matchedCount } = await retried(() =>
      claimCollection(this.#db).updateOne({ _id, requestId }, { $max: { expiresAt } }, { writeConcern: durable }),
    );
    return matchedCount === 1;
  }

  async #replaceExpired(holder: ClaimDocument, claim: ClaimDocument): Promise<boolean> {
    try {
      const { _id, ...rest } = claim;
      const result = await claimCollection(this.#db).replaceOne({ _id, expiresAt: holder.expiresAt }, rest, {
        writeConcern: durable,
      });
      return result.modifiedCount === 1;
    } catch (error) {
      throw faultOfDatabase(error);
    }
  }
}
