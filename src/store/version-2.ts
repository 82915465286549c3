import { BSON, type Db, DBRef } from "mongodb";
import { firstId, indexOfEvent, timeOfId } from "../ids.ts";
import { durable, everyShard, insertDurably } from "./database.ts";
import { asBytes, type CallerObject, callerObject, isMisread, JsonText, storedObject } from "./documents.ts";
import { documentsOf, events, lateMs, type NewRow } from "./events.ts";
import { type CardDocument, cardCollection } from "./snapshots.ts";

/**
 * Schema version 2 kept the timeline in `events`, with ids as text. `ingest migrate` copies its rows, so that instances
 * of that version can serve them until they are replaced. It drops the collection when none of these instances is left.
 */
const oldName = "events";

interface OldRow extends Omit<NewRow, "index" | "metrics" | "metadata"> {
  _id: string;
  metrics?: CallerObject;
  metadata?: CallerObject;
  organizationId: string;
  appId: string;
  requestId: string;
}

/** The progress of the copy. */
interface Bookmark {
  _id: "copied events";
  last: string;
}

/** When the last instance of version 2 was replaced: such instances did not count events by day. */
interface CountsBegun {
  _id: "counts by day";
  since: Date;
}

const bookmarks = (db: Db) => db.collection<Bookmark>("schema");
const beginnings = (db: Db) => db.collection<CountsBegun>("schema");
const oldRows = (db: Db) => db.collection<{ _id: string }>(oldName);

/** Whether there are rows of instances of version 2 to copy. */
export const hasOldRows = async (db: Db): Promise<boolean> =>
  (await oldRows(db).findOne({}, { projection: { _id: 1 } })) !== null;

const batchRows = 500;
/** Rows between two reports. */
const reportEvery = 100_000;
/**
 * Copies the old rows in the order of their ids. It continues where an earlier run stopped, and skips rows that were
 * copied. @returns the number of copied rows.
 */
export async function copyOldRows(db: Db, report: (line: string) => void): Promise<number> {
  const known = (await bookmarks(db).findOne({ _id: "copied events" }))?.last;
  let last = known === undefined ? "" : firstId("evt", new Date(timeOfId(known).getTime() - lateMs));
  const all = await oldRows(db).estimatedDocumentCount();
  let [looked, copied] = [0, 0];
  for (;;) {
    const batch = await oldRows(db)
      .find<Uint8Array>({ _id: { $gt: last } }, { ...asBytes, sort: { _id: 1 }, limit: batchRows })
      .map((bytes) => BSON.deserialize(bytes) as OldRow)
      .toArray();
    const end = batch.at(-1);
    if (end === undefined) {
      // A comparison with a text finds only texts.
      const other = await oldRows(db).findOne({ _id: { $not: { $type: "string" } } });
      if (other !== null) throw new Error("events: a document has no id of an event, so the rows are not dropped");
      return copied;
    }
    const outcomes = await insertDurably(db, events.name, [...Map.groupBy(batch, ownerKey).values()].flatMap(newRows));
    copied += outcomes.filter((outcome) => "value" in outcome && outcome.value === "written").length;
    const failed = outcomes.find((outcome) => "error" in outcome);
    if (failed !== undefined) throw failed.error;
    last = end._id;
    await bookmarks(db).updateOne(
      { _id: "copied events" },
      { $set: { last } },
      { upsert: true, writeConcern: durable },
    );
    if (Math.floor((looked + batch.length) / reportEvery) > Math.floor(looked / reportEvery)) {
      report(`events: ${looked + batch.length} of about ${all} looked at …`);
    }
    looked += batch.length;
  }
}

/** Stores cards again that have names which the driver would misread. */
export async function mendCards(db: Db): Promise<void> {
  const options = { ...asBytes, ...everyShard("any card may have such names") };
  for await (const bytes of cardCollection(db).find<Uint8Array>({}, options)) {
    if (!Buffer.from(bytes).includes("$ref\0")) continue;
    const { _id, organizationId, requestId, metrics, metadata } = BSON.deserialize(bytes) as CardDocument;
    const mended = {
      metrics: storedObject(storable(callerObject(metrics))),
      ...(metadata === undefined ? {} : { metadata: storedObject(storable(callerObject(metadata))) }),
    };
    // A snapshot that came meanwhile keeps its own figures.
    await cardCollection(db).updateOne({ _id, organizationId, requestId }, { $set: mended });
  }
}

/** The days before this time have events without counts. Undefined in a database that was never of version 2. */
export const countedSince = async (db: Db): Promise<Date | undefined> =>
  (await beginnings(db).findOne({ _id: "counts by day" }))?.since;

export async function dropOldRows(db: Db): Promise<void> {
  const options = { upsert: true, writeConcern: durable };
  await beginnings(db).updateOne({ _id: "counts by day" }, [{ $set: { since: "$$NOW" } }], options);
  await db.collection(oldName).drop();
  await bookmarks(db).deleteOne({ _id: "copied events" });
}

const ownerKey = ({ requestId }: OldRow) => requestId;

/** The rows of one request in this version's form. */
function newRows(rows: readonly OldRow[]) {
  const { requestId } = rows[0] as OldRow;
  return documentsOf(
    rows[0] as OldRow,
    rows.map(({ _id, workerId, type, category, timestamp, durationSeconds, metrics, metadata }): NewRow => {
      const index = indexOfEvent(_id, requestId);
      if (index === undefined) throw new Error(`events: ${_id} is not the id of an event of ${requestId}`);
      const row = { index, workerId, type, category, timestamp, durationSeconds };
      return { ...row, metrics: metrics && storable(metrics), metadata: metadata && storable(metadata) };
    }),
  );
}

/** The object in this version's stored form. */
function storable(value: CallerObject): CallerObject | JsonText {
  const given = withoutReferences(value) as CallerObject;
  return hasMisread(given) ? new JsonText(given) : given;
}

/** The driver reads an object with `$ref` and `$id` as a reference. This undoes it. */
function withoutReferences(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(withoutReferences);
  if (value instanceof DBRef) {
    const { collection, oid, db, fields } = value;
    return { $ref: db === undefined ? collection : `${db}.${collection}`, $id: withoutReferences(oid), ...fields };
  }
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(Object.entries(value).map(([name, member]) => [name, withoutReferences(member)]));
}

const hasMisread = (value: unknown): boolean =>
  typeof value === "object" &&
  value !== null &&
  Object.entries(value).some(([name, member]) => (!Array.isArray(value) && isMisread(name)) || hasMisread(member));
