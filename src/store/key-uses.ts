import type { Db } from "mongodb";
import { LRUCache } from "lru-cache";
import { bounded, type CollectionDefinition, isDuplicateKey } from "./database.ts";

/** Not part of the key's own document, because every instance hears of changes to that. */
export interface KeyUseDocument {
  /** The id of a key or an access token. */
  _id: string;
  usedAt: Date;
}

export const keyUses: CollectionDefinition = { name: "keyUses", indexes: [] };

export const keyUseCollection = (db: Db) => db.collection<KeyUseDocument>(keyUses.name);

/** Milliseconds between two writes for one key, over all instances; also the precision of the stored time. */
const writeEveryMs = 60_000;
const gatherMs = 2_000;
const keysMax = 50_000;

/** Records the last use of keys and access tokens, many in one write. */
export class KeyUses {
  readonly #db: Db;
  readonly #now: () => number;
  readonly #onError: (error: unknown) => void;
  readonly #writtenAtMs = new LRUCache<string, number>({ max: keysMax });
  #gathered = new Map<string, number>();
  #timer: NodeJS.Timeout | undefined;
  #writing: Promise<void> | undefined;

  constructor(db: Db, now: () => number, onError: (error: unknown) => void) {
    this.#db = db;
    this.#now = now;
    this.#onError = onError;
  }

  /** Counts also if the request is refused. */
  used(keyId: string): void {
    const nowMs = this.#now();
    if (nowMs - (this.#writtenAtMs.get(keyId) ?? 0) < writeEveryMs) return;
    this.#writtenAtMs.set(keyId, nowMs);
    this.#gathered.set(keyId, nowMs);
    this.#timer ??= setTimeout(() => {
      this.#writing = this.#write();
    }, gatherMs).unref();
  }

  async stop(): Promise<void> {
    clearTimeout(this.#timer);
    await this.#writing;
    await this.#write();
  }

  async #write(): Promise<void> {
    this.#timer = undefined;
    const gathered = this.#gathered;
    this.#gathered = new Map();
    if (gathered.size === 0) return;
    const operations = [...gathered].map(([_id, usedAtMs]) => ({
      updateOne: {
        // If another instance stored a recent time, the filter does not match, and the upsert's duplicate _id is
        // ignored.
        filter: { _id, usedAt: { $lte: new Date(usedAtMs - writeEveryMs) } },
        update: { $set: { usedAt: new Date(usedAtMs) } },
        upsert: true,
      },
    }));
    try {
      const options = { ordered: false, writeConcern: { w: 1 } } as const;
      await bounded(keyUseCollection(this.#db).bulkWrite(operations, options));
    } catch (error) {
      if (isDuplicateKey(error)) return;
      for (const keyId of gathered.keys()) this.#writtenAtMs.delete(keyId);
      this.#onError(error);
    }
  }
}

/** When each of these keys was last used, to the minute. */
export async function findKeyUses(db: Db, keyIds: readonly string[]): Promise<Map<string, Date>> {
  const uses = await keyUseCollection(db)
    .find({ _id: { $in: [...keyIds] } })
    .toArray();
  return new Map(uses.map(({ _id, usedAt }) => [_id, usedAt]));
}
