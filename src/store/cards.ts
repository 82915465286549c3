import type { AnyBulkWriteOperation, Db } from "mongodb";
import { MongoBulkWriteError } from "mongodb";
import { type CollectionDefinition, durable, retried } from "./database.ts";
import { type BatchHooks, GroupCommit } from "./group-commit.ts";

/** The current snapshot of a worker, per app and snapshot type. */
export interface CardDocument {
  /** `<worker id>/<app id>/<snapshot type>`. */
  _id: string;
  organizationId: string;
  workerId: string;
  appId: string;
  snapshotType: string;
  timestamp: Date;
  /** Decides between equal timestamps: ids grow with arrival. */
  requestId: string;
  receivedAt: Date;
  metrics: Record<string, unknown>;
  metadata?: Record<string, unknown>;
}

export const cardsOfOrganization = { organizationId: 1, _id: 1 } as const;

export const cards: CollectionDefinition = {
  name: "snapshots",
  indexes: [
    {
      key: cardsOfOrganization,
      why: "the cards of an organisation are listed; those of a worker share the id's beginning",
    },
  ],
};

export const cardCollection = (db: Db) => db.collection<CardDocument>(cards.name);

export const cardId = (workerId: string, appId: string, snapshotType: string) => `${workerId}/${appId}/${snapshotType}`;

/** The ids of a worker's cards: '0' follows '/', so they and nothing else lie between the two. */
export const cardIdsOf = (workerId: string) => ({ $gte: `${workerId}/`, $lt: `${workerId}0` });

const isNewer = (a: CardDocument, b: CardDocument) =>
  a.timestamp.getTime() - b.timestamp.getTime() || (a.requestId < b.requestId ? -1 : 1);

/** Puts cards, the newest (timestamp, request id) winning whatever the order of arrival and however often it is done. */
export class CardStore {
  readonly #writes: GroupCommit<CardDocument, void>;

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#writes = new GroupCommit<CardDocument, void>({
      name: "cards",
      concurrencyMax: 2,
      batchWeightMax: 500,
      queueWeightMax: 20_000,
      ...hooks,
      run: async (batch) => {
        const newest = new Map<string, CardDocument>();
        for (const card of batch) {
          const known = newest.get(card._id);
          if (known === undefined || isNewer(card, known) > 0) newest.set(card._id, card);
        }
        await retried(() => putCards(db, [...newest.values()]));
        return batch.map(() => ({ value: undefined }));
      },
    });
  }

  /** Makes `card` the current one unless a newer one is; durable when it returns. */
  put(card: CardDocument, wanted?: () => boolean): Promise<void> {
    return this.#writes.submit(card, 1, wanted);
  }
}

async function putCards(db: Db, batch: readonly CardDocument[]): Promise<void> {
  const collided = await writeCards(db, batch, true);
  // A collision says that the card exists, not that it is newer: two first snapshots may have met. Without the upsert
  // the comparison alone decides.
  if (collided.length > 0) await writeCards(db, collided, false);
}

async function writeCards(db: Db, batch: readonly CardDocument[], upsert: boolean): Promise<CardDocument[]> {
  const operations: AnyBulkWriteOperation<CardDocument>[] = batch.map((card) => ({
    replaceOne: {
      filter: {
        _id: card._id,
        $or: [
          { timestamp: { $lt: card.timestamp } },
          { timestamp: card.timestamp, requestId: { $lte: card.requestId } },
        ],
      },
      replacement: card,
      upsert,
    },
  }));
  try {
    await cardCollection(db).bulkWrite(operations, { ordered: false, writeConcern: durable });
    return [];
  } catch (error) {
    if (!(error instanceof MongoBulkWriteError)) throw error;
    const writeErrors = Array.isArray(error.writeErrors) ? error.writeErrors : [error.writeErrors];
    const onlyCollisions = writeErrors.length > 0 && writeErrors.every(({ code }) => code === 11_000);
    if (!upsert || !onlyCollisions || error.result.getWriteConcernError() !== undefined) throw error;
    return writeErrors.map(({ index }) => batch[index] as CardDocument);
  }
}
