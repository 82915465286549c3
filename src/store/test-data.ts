import { type Db, type Document, MaxKey, MinKey } from "mongodb";
import { testOrganizationOf, ulidOf } from "../ids.ts";
import { bounded, durable } from "./database.ts";
import { eventCollection, rowsOfWorker } from "./events.ts";
import { keyCollection } from "./keys.ts";
import { announce, workersOf } from "./revisions.ts";
import { type RemovalOptions, removeRowsReceivedBefore } from "./row-removal.ts";
import { type CardDocument, cardCollection, cardsOfOrganization, cardsOfWorker } from "./snapshots.ts";
import { workerCollection } from "./workers.ts";

/** Cards or workers in one step. */
const stepMax = 100;

/** The ids under which test data may lie. */
export async function testOrganizations(db: Db): Promise<string[]> {
  const found = await bounded(keyCollection(db).distinct("organizationId", { test: true }));
  return found.map(testOrganizationOf);
}

/**
 * Removes test data that was received earlier, durably, and the workers that this leaves without any. A claim of an
 * Idempotency-Key expires much sooner. Yields after each step.
 *
 * A request that names such a worker at this very moment may store rows that name nobody. They go with the others.
 */
export async function* removeTestData(
  db: Db,
  organizationId: string,
  before: Date,
  options: RemovalOptions,
): AsyncGenerator<number, void> {
  yield* removeRowsReceivedBefore(db, organizationId, before, options);
  yield* removeCards(db, organizationId, before);
  yield* removeIdleWorkers(db, organizationId, before);
}

async function* removeCards(db: Db, organizationId: string, before: Date): AsyncGenerator<number, void> {
  const cards = cardCollection(db);
  const end = { organizationId, timestamp: new MinKey(), _id: new MinKey() };
  let from: Document | undefined = { organizationId, timestamp: new MaxKey(), _id: new MaxKey() };
  // No index has the time of receipt, so this reads every card once, in the order of an index.
  while (from !== undefined) {
    const options = { projection: { timestamp: 1, receivedAt: 1 }, hint: cardsOfOrganization, min: from, max: end };
    const finding = cards.find({ organizationId }, options).sort(cardsOfOrganization);
    const found: CardDocument[] = await bounded(finding.limit(stepMax + 1).toArray());
    const [next] = found.splice(stepMax);
    const ids = found.filter(({ receivedAt }) => receivedAt < before).map(({ _id }) => _id);
    // A card that is new since then stays.
    const isOld = { organizationId, receivedAt: { $lt: before }, _id: { $in: ids } };
    yield ids.length === 0 ? 0 : (await bounded(cards.deleteMany(isOld, { writeConcern: durable }))).deletedCount;
    from = next && { organizationId, timestamp: next.timestamp, _id: next._id };
  }
}

async function* removeIdleWorkers(db: Db, organizationId: string, before: Date): AsyncGenerator<number, void> {
  const workers = workerCollection(db);
  const options = { projection: { createdAt: 1 }, sort: { _id: 1 }, limit: stepMax } as const;
  for (let last = ""; ;) {
    const found = await bounded(workers.find({ organizationId, _id: { $gt: last } }, options).toArray());
    if (found.length === 0) return;
    const idle: string[] = [];
    for (const { _id, createdAt } of found) {
      if (createdAt < before && !(await hasData(db, organizationId, _id))) idle.push(_id);
    }
    const which = { organizationId, _id: { $in: idle } };
    if (idle.length > 0) {
      await bounded(workers.deleteMany(which, { writeConcern: durable }));
      await bounded(announce(db, [workersOf(organizationId)]));
    }
    yield idle.length;
    last = (found.at(-1) as (typeof found)[number])._id;
  }
}

async function hasData(db: Db, organizationId: string, workerId: string): Promise<boolean> {
  const projection = { _id: 1 } as const;
  const rows = { org: ulidOf(organizationId), worker: ulidOf(workerId) };
  const row = await bounded(eventCollection(db).findOne(rows, { projection, hint: rowsOfWorker }));
  if (row !== null) return true;
  const card = cardCollection(db).findOne({ organizationId, workerId }, { projection, hint: cardsOfWorker });
  return (await bounded(card)) !== null;
}
