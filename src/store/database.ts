import {
  type AggregateOptions,
  type CreateIndexesOptions,
  type Db,
  type Document,
  type IndexSpecification,
  MongoClient,
  MongoError,
  MongoNetworkError,
  MongoServerError,
  MongoServerSelectionError,
  MongoWriteConcernError,
  type ObjectId,
  type ServerDescriptionChangedEvent,
  type Timestamp,
} from "mongodb";
import { unavailable } from "../errors.ts";
import { parseMongodbUri } from "../mongodb-uri.ts";
import type { Settled } from "./group-commit.ts";

/** A majority has the write in its journal. Ingest waits for this before it acknowledges a caller's data. */
export const durable = { w: "majority", j: true } as const;

/**
 * Time limits for the database, in milliseconds. If the database is down, an operation fails after `serverSelectionMs`.
 * If it hangs, the driver notices the missing heartbeat within `heartbeatMs` + `connectMs`. Running operations then
 * fail, or try again for `serverSelectionMs`. So callers wait at most the sum, 7 seconds, and in rare cases
 * `operationMs`.
 */
export const databaseTimeouts = {
  serverSelectionMs: 2_000,
  /** For a new connection, and for a late heartbeat. */
  connectMs: 3_000,
  heartbeatMs: 2_000,
  /** For an answer on an open connection while heartbeats arrive. */
  socketMs: 10_000,
  /**
   * For any operation. The driver (7.9) sometimes never settles a command whose connection closes while it is being
   * sent.
   */
  operationMs: 11_000,
} as const;

export interface IndexDefinition {
  readonly key: IndexSpecification;
  readonly options?: CreateIndexesOptions;
  readonly why: string;
}

export interface CollectionDefinition {
  readonly name: string;
  /** Whether its documents are stored in the order of `_id`. Default false. */
  readonly isClustered?: boolean;
  readonly indexes: readonly IndexDefinition[];
}

/**
 * Option for the few operations that a sharded cluster sends to every shard, because they name no organisation. Tests
 * fail on any other. `why` justifies it, and appears in the database's log.
 */
export const everyShard = (why: string) => ({ comment: `every shard: ${why}` });

export interface ClientOptions {
  readonly monitorCommands?: boolean;
  /** Removes the time limit, for commands such as an index build. */
  readonly longOperations?: boolean;
}

/** Connects lazily. The URI may set `maxPoolSize` and `appName`. */
export function createClient(uri: string, { monitorCommands = false, longOperations = false }: ClientOptions = {}) {
  const chosen = parseMongodbUri(uri).options;
  return new MongoClient(uri, {
    monitorCommands,
    ...(chosen.has("appname") ? {} : { appName: "ingest" }),
    ...(chosen.has("maxpoolsize") ? {} : { maxPoolSize: 32 }),
    serverSelectionTimeoutMS: databaseTimeouts.serverSelectionMs,
    connectTimeoutMS: databaseTimeouts.connectMs,
    heartbeatFrequencyMS: databaseTimeouts.heartbeatMs,
    socketTimeoutMS: longOperations ? 0 : databaseTimeouts.socketMs,
    ignoreUndefined: true,
    writeConcern: durable,
    readPreference: "primary",
  });
}

/**
 * Calls `act` when the client learns of a new primary, before it sends a command there. A `mongos` hides that.
 * @returns a function that ends it.
 */
export function onElection(client: MongoClient, act: () => void): () => void {
  let known: ObjectId | undefined;
  const hear = ({ newDescription: { electionId } }: ServerDescriptionChangedEvent) => {
    if (electionId === null || known?.equals(electionId) === true) return;
    known = electionId;
    act();
  };
  client.on("serverDescriptionChanged", hear);
  return () => void client.off("serverDescriptionChanged", hear);
}

const duplicateKeyCode = 11_000;

export function isDuplicateKey(error: unknown): boolean {
  return error instanceof MongoError && error.code === duplicateKeyCode;
}

/** Server codes of passing errors: elections, rollbacks, shutdowns, time limits, late write concerns, lost cursors. */
const passingCodes = new Set([
  6, 7, 43, 50, 64, 89, 91, 112, 134, 175, 189, 202, 237, 262, 9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436,
]);

/** Whether the same operation may succeed later. */
export function isPassing(error: unknown): boolean {
  if (error instanceof MongoServerSelectionError || error instanceof MongoNetworkError) return true;
  if (error instanceof MongoServerError)
    return passingCodes.has(Number(error.code)) || error.hasErrorLabel("RetryableWriteError");
  // Other errors of the driver: pool cleared, topology closed, not connected, timed out.
  return error instanceof MongoError;
}

/** Turns a passing error into the fault `unavailable`. */
export function faultOfDatabase(error: unknown): unknown {
  return isPassing(error) ? unavailable(error) : error;
}

/**
 * Throws a passing error if the operation takes too long; the server may still have done it. The driver's `timeoutMS`
 * does not limit single commands.
 */
export async function bounded<T>(operation: Promise<T>, withinMs: number = databaseTimeouts.operationMs): Promise<T> {
  const lost = Promise.withResolvers<never>();
  const timer = setTimeout(
    () => lost.reject(new MongoNetworkError(`no answer and no error within ${withinMs} ms`)),
    withinMs,
  );
  try {
    return await Promise.race([operation, lost.promise]);
  } finally {
    clearTimeout(timer);
  }
}

/** Whether the database answers now. Ask before a write that must not be repeated. */
export const isAnswering = (db: Db): Promise<boolean> =>
  bounded(db.command({ ping: 1 })).then(
    () => true,
    () => false,
  );

/** Longest wait for a member to catch up, or for a majority to confirm, in milliseconds. */
const readWithinMs = 2_000;
/** Larger than any look-up: only the first batch of a reply is linearizable. */
const readBatchSize = 1_000;

/**
 * Runs a read of what may have been revoked. A primary that lost its majority still answers, with old data. So the
 * result is at least as new as `since`, an operation time of the database. Without `since` the read is linearizable, at
 * the cost of a majority write.
 */
export function readSince<T>(
  db: Db,
  since: Timestamp | undefined,
  read: (options: AggregateOptions) => Promise<T>,
): Promise<T> {
  const options = { batchSize: readBatchSize, maxTimeMS: readWithinMs };
  if (since === undefined) return read({ ...options, readConcern: "linearizable" });
  return db.client.withSession({ causalConsistency: true }, (session) => {
    session.advanceOperationTime(since);
    return read({ ...options, readConcern: "majority", session });
  });
}

/** No further try begins after this many milliseconds, so that callers learn of the failure in time. */
const retryWithinMs = 2_500;

/** Runs an idempotent operation up to `triesMax` times while it fails with passing errors. */
export async function retried<T>(operation: () => Promise<T>, triesMax = 3): Promise<T> {
  const startedMs = performance.now();
  for (let attempt = 1; ; attempt++) {
    try {
      return await bounded(operation());
    } catch (error) {
      const last = attempt === triesMax || performance.now() - startedMs > retryWithinMs;
      if (last || !isPassing(error) || error instanceof MongoServerSelectionError) throw faultOfDatabase(error);
    }
  }
}

/** The outcome of a document. */
export type Written = Settled<"written" | "duplicate"> & {
  /** Of a duplicate: the key of the unique index that refused it. */
  readonly keyPattern?: Document | undefined;
  /** Of a duplicate: whether the command was repeated, so that its first try may have stored the document. */
  readonly isRepeated?: boolean;
};

/**
 * Inserts documents durably as one unordered command. The driver's bulk API is slower, and can report a network error
 * as a bulk error without write errors. After a passing error it repeats the command: the documents have our ids, so
 * one that the first try stored counts as a duplicate.
 * @throws if the outcome of the whole command is unknown.
 */
export function insertDurably(db: Db, collection: string, documents: readonly Document[]): Promise<Written[]> {
  return write(db, documents, (part) => ({ insert: collection, documents: part }));
}

export interface UpdateStatement {
  readonly q: Document;
  readonly u: Document;
  readonly upsert: boolean;
}

/** Like insertDurably, for idempotent updates. */
export function updateDurably(db: Db, collection: string, updates: readonly UpdateStatement[]): Promise<Written[]> {
  return write(db, updates, (part) => ({ update: collection, updates: part }));
}

async function write<T>(db: Db, items: readonly T[], commandOf: (part: readonly T[]) => Document): Promise<Written[]> {
  let tries = 0;
  try {
    const reply = await retried(() => {
      tries++;
      return run(db, commandOf(items));
    });
    return outcomesOf(reply, items.length, tries > 1);
  } catch (error) {
    if (items.length < 2 || !isTooLarge(error)) throw error;
    const half = items.length >> 1;
    return [...(await write(db, items.slice(0, half), commandOf)), ...(await write(db, items.slice(half), commandOf))];
  }
}

/** Returns the reply when every write is durable or finally refused. */
async function run(db: Db, command: Document): Promise<Document> {
  const reply = await db.command({ ...command, ordered: false, writeConcern: { ...durable, wtimeout: 8_000 } });
  if (reply.writeConcernError !== undefined) throw new MongoWriteConcernError(reply as never);
  // For example, the primary stepped down during the batch.
  const passing = ((reply.writeErrors ?? []) as WriteError[]).find(({ code }) => passingCodes.has(code));
  if (passing !== undefined) throw new MongoServerError({ message: passing.errmsg, code: passing.code });
  return reply;
}

interface WriteError {
  readonly index: number;
  readonly code: number;
  readonly errmsg: string;
  /** For a duplicate: the index. */
  readonly keyPattern?: Document;
}

function outcomesOf(reply: Document, count: number, isRepeated: boolean): Written[] {
  const outcomes = Array<Written>(count).fill({ value: "written" });
  for (const { index, code, errmsg, keyPattern } of (reply.writeErrors ?? []) as WriteError[]) {
    outcomes[index] =
      code === duplicateKeyCode
        ? { value: "duplicate", keyPattern, isRepeated }
        : { error: new Error(`write refused: ${code} ${errmsg}`) };
  }
  return outcomes;
}

/**
 * The server refuses commands above 16 MB; the driver throws a RangeError a little above that. Neither has done
 * anything.
 */
const isTooLarge = (error: unknown) =>
  error instanceof RangeError || (error instanceof MongoServerError && error.code === 10_334);
