import { isDeepStrictEqual } from "node:util";
import { type Db, type Document, MongoServerError, MongoServerSelectionError, type ServerDescription } from "mongodb";
import { ConfigError } from "../config.ts";
import { type CollectionDefinition, durable, everyShard, type IndexDefinition } from "./database.ts";
import { eventCollection, events, rowsInOrder } from "./events.ts";
import { olderInstances } from "./instances.ts";
import { announce } from "./revisions.ts";
import { schemaVersion } from "./schema-version.ts";
import { copyOldRows, dropOldRows, hasOldRows, mendCards } from "./version-2.ts";

interface SchemaDocument {
  _id: "ingest";
  version: number;
  migratedAt: Date;
}

export const schema: CollectionDefinition = { name: "schema", indexes: [] };

const schemaCollection = (db: Db) => db.collection<SchemaDocument>(schema.name);

/** The database does not fit this version; the message says which command to run. */
export class SchemaError extends Error {}

const codes = {
  unauthorized: 13,
  noSuchCollection: 26,
  noSuchIndex: 27,
  collectionExists: 48,
  optionsConflict: 85,
  keysConflict: 86,
} as const;
const isCode = (error: unknown, code: number) => error instanceof MongoServerError && error.code === code;

/**
 * Checks that the server is a replica set, because a standalone server has no change streams.
 * @throws ConfigError that says what to do; Error with the reason if the database cannot be reached.
 */
export async function connectDatabase(db: Db): Promise<void> {
  let hello: Document;
  try {
    // Connect first: of several operations that fail to connect, only one would report the reason.
    await db.client.connect();
    hello = await db.admin().command({ hello: 1 });
  } catch (error) {
    const unfit = unfitReason(error);
    if (unfit !== undefined) throw new ConfigError(unfit, { cause: error });
    throw new Error(`The database cannot be reached: ${(error as Error).message}`, { cause: error });
  }
  if (hello.setName !== undefined || hello.msg === "isdbgrid") return;
  throw new ConfigError(hello.isreplicaset === true ? notInitiated : standalone);
}

const standalone =
  "MONGODB_URI names a standalone mongod, and Ingest needs a replica set: start mongod with --replSet rs0, then run rs.initiate() in mongosh once.";
const notInitiated = "MONGODB_URI names a replica set that was never initiated: run rs.initiate() in mongosh once.";

/** The reason why the driver finds no server, if waiting does not help. */
function unfitReason(error: unknown): string | undefined {
  if (!(error instanceof MongoServerSelectionError)) return undefined;
  const { setName, servers } = error.reason ?? {};
  const types = [...(servers?.values() ?? [])].map(({ type }: ServerDescription) => type);
  if (types.some((type) => type === "RSGhost")) return notInitiated;
  // The driver drops servers of other replica sets, and standalone ones.
  if (servers?.size !== 0) return undefined;
  return `No server of MONGODB_URI belongs to the replica set '${setName}': correct replicaSet, or start mongod with --replSet ${setName} and run rs.initiate() in mongosh once.`;
}

/** What `prepareDatabase` may do: migrate any database, set up one without events, or only check. */
export type Permission = "migrate" | "set up" | "look only";

/**
 * Checks that the database fits this version.
 * @returns warnings for the operator.
 * @throws SchemaError that says which command to run if it does not fit.
 */
export async function prepareDatabase(
  db: Db,
  collections: readonly CollectionDefinition[],
  permission: Permission,
): Promise<string[]> {
  const mark = await schemaCollection(db).findOne({ _id: "ingest" }, { readConcern: "majority" });
  const migrated = async () => {
    await migrate(db, collections);
    return [];
  };
  if (mark === null) {
    const why = everyShard("any event says that the database is not fresh");
    const options = { projection: { _id: 1 }, hint: rowsInOrder, ...why };
    const isFresh = !(await hasOldRows(db)) && (await eventCollection(db).findOne({}, options)) === null;
    if (permission === "migrate" || (permission === "set up" && isFresh)) return migrated();
    throw new SchemaError(
      isFresh
        ? `The database '${db.databaseName}' is not set up for Ingest: check MONGODB_URI and MONGODB_DB, or run \`ingest migrate\` to set it up.`
        : `The database '${db.databaseName}' was never migrated: run \`ingest migrate\`.`,
    );
  }
  const steps = mark.version - schemaVersion;
  if (steps < 0 && permission === "migrate") return migrated();
  const versions = `The database '${db.databaseName}' has schema version ${mark.version}, and this version of Ingest has ${schemaVersion}`;
  if (steps < 0)
    throw new SchemaError(`${versions}: run \`ingest migrate\`. Instances of the version before may run meanwhile.`);
  if (steps > 1) throw new SchemaError(`${versions}: run a newer version of Ingest.`);
  if (steps === 1) return [`${versions}: update this instance soon.`];
  const problems = (await differences(db, collections)).map(textOf);
  const isBehind = problems.length > 0 || (await hasOldRows(db));
  if (isBehind && permission === "migrate") return migrated();
  if (problems.length === 0) {
    return isBehind ? [`The database '${db.databaseName}' has rows of an older version of Ingest: ${copyRemedy}.`] : [];
  }
  const more = problems.length > 3 ? `, and ${problems.length - 3} more` : "";
  throw new SchemaError(
    `The database '${db.databaseName}' lacks what this version needs: ${problems.slice(0, 3).join("; ")}${more}. Run \`ingest migrate\`.`,
  );
}

/**
 * Creates missing collections and indexes, and rebuilds changed ones. Builds can take long, so its client needs
 * `longOperations`. Two migrations may run at once.
 * @returns a sentence for each change to an index of an existing collection.
 */
export async function migrate(
  db: Db,
  collections: readonly CollectionDefinition[],
  report: (line: string) => void = () => {},
): Promise<string[]> {
  const existing = new Set(
    (await db.listCollections({}, { nameOnly: true }).toArray()).map(({ name }: { name: string }) => name),
  );
  await Promise.all(collections.filter(({ name }) => !existing.has(name)).map((collection) => create(db, collection)));
  const changes: string[] = [];
  // Build one index after another, because each build reads its whole collection.
  for (const difference of await differences(db, collections)) {
    const text = textOf(difference);
    report(`${text}: building it …`);
    await mend(db, difference);
    changes.push(text);
  }
  changes.push(...(await copyEvents(db, report)));
  // Of two changes that make the document, one would fail.
  await announce(db, []);
  const mark = { $max: { version: schemaVersion }, $set: { migratedAt: new Date() } };
  await schemaCollection(db).updateOne({ _id: "ingest" }, mark, { upsert: true, writeConcern: durable });
  return changes;
}

const copyRemedy = "run `ingest migrate` again when all of its instances are replaced";

/** Copies the rows of schema version 2, and drops them when no instance of that version runs. */
async function copyEvents(db: Db, report: (line: string) => void): Promise<string[]> {
  if (!(await hasOldRows(db))) return [];
  report("events: copying to the layout of this version …");
  let copied = await copyOldRows(db, report);
  await mendCards(db);
  // Instances may have stored rows that the copy had passed. So the last copy begins and ends without any.
  const before = await olderInstances(db);
  copied += await copyOldRows(db, report);
  const older = before.length === 0 ? await olderInstances(db) : before;
  if (older.length === 0) await dropOldRows(db);
  else report(`Instances of an older version run (${older.join("; ")}): ${copyRemedy}.`);
  return copied === 0 ? [] : [`events: ${copied} copied to ${events.name}`];
}

async function create(db: Db, { name, isClustered, indexes }: CollectionDefinition): Promise<void> {
  try {
    await db.createCollection(name, isClustered ? { clusteredIndex: { key: { _id: 1 }, unique: true } } : {});
  } catch (error) {
    if (!isCode(error, codes.collectionExists)) throw error;
  }
  if (indexes.length > 0) await db.collection(name).createIndexes(indexes.map(specOf));
}

const specOf = ({ key, options }: IndexDefinition) => ({ key: key as never, ...options });

interface Difference {
  readonly collection: string;
  readonly wanted: IndexDefinition;
  /** The existing index on the same key, with other options. */
  readonly found: Document | undefined;
}

const textOf = ({ collection, wanted, found }: Difference) =>
  `${collection} ${found === undefined ? "has no index" : "has other options on its index"} ${JSON.stringify(wanted.key)}`;

const optionNames = ["unique", "sparse", "expireAfterSeconds", "partialFilterExpression"] as const;
const optionsOf = (index: Document) =>
  Object.fromEntries(optionNames.filter((name) => index[name]).map((name) => [name, index[name]]));
/** Keeps `expireAfterSeconds: 0`, which differs from no expiry. */
const meaningOf = (index: Document = {}) => ({ ...optionsOf(index), expireAfterSeconds: index.expireAfterSeconds });

async function differences(db: Db, collections: readonly CollectionDefinition[]): Promise<Difference[]> {
  const found = await Promise.all(
    collections.map(async ({ name, indexes }) => {
      const existing = indexes.length === 0 ? [] : await indexesOf(db, name);
      if (existing === undefined) return [];
      return indexes.flatMap((wanted): Difference[] => {
        const same = existing.filter(({ key }) => JSON.stringify(key) === JSON.stringify(wanted.key));
        if (same.some((index) => isDeepStrictEqual(meaningOf(index), meaningOf(wanted.options)))) return [];
        return [{ collection: name, wanted, found: same[0] }];
      });
    }),
  );
  return found.flat();
}

/** Undefined if the role may not list indexes. Then only the stored schema version says that they exist. */
async function indexesOf(db: Db, collection: string): Promise<Document[] | undefined> {
  try {
    return await db.collection(collection).listIndexes().toArray();
  } catch (error) {
    if (isCode(error, codes.noSuchCollection)) return [];
    if (isCode(error, codes.unauthorized)) return undefined;
    throw error;
  }
}

async function mend(db: Db, { collection: name, wanted, found }: Difference): Promise<void> {
  const collection = db.collection(name);
  const spec = specOf(wanted);
  const seconds = wanted.options?.expireAfterSeconds;
  if (found === undefined) return void (await collection.createIndexes([spec]));
  const isTtlOnly = isDeepStrictEqual({ ...meaningOf(found), expireAfterSeconds: seconds }, meaningOf(wanted.options));
  if (isTtlOnly && seconds !== undefined) {
    await db.command({ collMod: name, index: { name: found.name, expireAfterSeconds: seconds } });
    return;
  }
  // If the server allows both indexes at once, create the new one first, so that unique keys stay protected.
  let both = true;
  try {
    await collection.createIndexes([{ ...spec, name: `${found.name}_${schemaVersion}` }]);
  } catch (error) {
    if (!isCode(error, codes.optionsConflict) && !isCode(error, codes.keysConflict)) throw error;
    both = false;
  }
  try {
    await collection.dropIndex(found.name);
  } catch (error) {
    if (!isCode(error, codes.noSuchIndex)) throw error;
  }
  if (!both) await collection.createIndexes([spec]);
}
