import type { Db } from "mongodb";
import { liveOrganizationOf } from "../ids.ts";
import { type CollectionDefinition, type UpdateStatement, updateDurably, type Written } from "./database.ts";
import { type CallerObject, callerObject, type StoredObject } from "./documents.ts";
import { type BatchHooks, GroupCommit, type Settled } from "./group-commit.ts";

export interface Card {
  /** `<worker id>/<app id>/<snapshot type>`. */
  _id: string;
  organizationId: string;
  workerId: string;
  appId: string;
  snapshotType: string;
  timestamp: Date;
  /**
   * Decides between equal timestamps, because ids grow with arrival (between instances, as exactly as they know the
   * server's clock). The decision fixes it, so putting a card again changes nothing.
   */
  requestId: string;
  receivedAt: Date;
  metrics: CallerObject;
  metadata?: CallerObject;
}

export interface CardDocument extends Omit<Card, "metrics" | "metadata"> {
  metrics: StoredObject;
  metadata?: StoredObject;
}

export const cardOf = ({ metrics, metadata, ...card }: CardDocument): Card => ({
  ...card,
  metrics: callerObject(metrics),
  ...(metadata === undefined ? {} : { metadata: callerObject(metadata) }),
});

export const cardsOfOrganization = { organizationId: 1, timestamp: -1, _id: -1 } as const;
export const cardsOfWorker = { organizationId: 1, workerId: 1, timestamp: -1, _id: -1 } as const;

export const cards: CollectionDefinition = {
  name: "snapshots",
  indexes: [
    { key: cardsOfOrganization, why: "the cards of an organisation, newest first" },
    { key: cardsOfWorker, why: "the cards of a worker, newest first" },
  ],
};

export const cardCollection = (db: Db) => db.collection<CardDocument>(cards.name);

export const cardId = (workerId: string, appId: string, snapshotType: string) => `${workerId}/${appId}/${snapshotType}`;

const isNewer = (a: CardDocument, b: CardDocument) =>
  a.timestamp.getTime() - b.timestamp.getTime() || (a.requestId < b.requestId ? -1 : 1);

/** Puts cards. The newest (timestamp, request id) wins, in any order of arrival, however often it is put. */
export class CardStore {
  readonly #writes: GroupCommit<CardDocument, void>;

  constructor(db: Db, hooks: BatchHooks = {}) {
    this.#writes = new GroupCommit<CardDocument, void>({
      name: "cards",
      ownerOf: ({ organizationId }) => liveOrganizationOf(organizationId),
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
        const outcomes = await putCards(db, [...newest.values()]);
        const byId = new Map([...newest.keys()].map((id, i) => [id, outcomes[i] as Settled<void>]));
        return batch.map(({ _id }) => byId.get(_id) as Settled<void>);
      },
    });
  }

  /** Durable when it returns. */
  put(card: CardDocument): Promise<void> {
    return this.#writes.submit(card);
  }
}

async function putCards(db: Db, batch: readonly CardDocument[]): Promise<Settled<void>[]> {
  const outcomes = await updateDurably(db, cards.name, statements(batch, true));
  // A duplicate only says that the card exists: two first snapshots may have raced. Try again without the upsert to
  // compare.
  const collided = batch.filter((_, i) => isDuplicate(outcomes[i]));
  const again = collided.length === 0 ? [] : await updateDurably(db, cards.name, statements(collided, false));
  const last = outcomes.map((outcome) => (isDuplicate(outcome) ? again.shift() : outcome));
  return last.map((outcome) => (outcome !== undefined && "error" in outcome ? outcome : { value: undefined }));
}

const isDuplicate = (outcome: Written | undefined) =>
  outcome !== undefined && "value" in outcome && outcome.value === "duplicate";

const statements = (batch: readonly CardDocument[], upsert: boolean): UpdateStatement[] =>
  batch.map((card) => ({
    q: {
      _id: card._id,
      organizationId: card.organizationId,
      $or: [{ timestamp: { $lt: card.timestamp } }, { timestamp: card.timestamp, requestId: { $lte: card.requestId } }],
    },
    u: card,
    upsert,
  }));
