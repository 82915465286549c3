import {
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
} from "mongodb";
import { unavailable } from "../errors.ts";
import { parseMongodbUri } from "../mongodb-uri.ts";
import type { Settled } from "./group-commit.ts";

/** Written to a majority and journalled: what every acknowledged write of a caller's data waits for. */
export const durable = { w: "majority", j: true } as const;

/**
 * How long the service waits for the database, in milliseconds. One that is gone is given up after `serverSelectionMs`.
 * One that hangs is known by its missing heartbeat, at most `heartbeatMs` + `connectMs` after its last sign of life: what
 * is under way fails then, or is tried once more for `serverSelectionMs`; from then on it is like one that is gone. So
 * nobody waits longer than the three together, 7 seconds, or in a rare case than `operationMs`.
 */
export const databaseTimeouts = {
  /** For a server that can take the operation. */
  serverSelectionMs: 2_000,
  /** For a connection, and for a heartbeat that is late. */
  connectMs: 3_000,
  /** Between two heartbeats. */
  heartbeatMs: 2_000,
  /** For the answer on an open connection while the heartbeat is well; above it the connection counts as dead. */
  socketMs: 10_000,
  /**
   * For any operation; above it it counts as lost. Needed because the driver (7.9) now and then leaves a command without
   * an end when its connection closes just as it is sent.
   */
  operationMs: 11_000,
} as const;

/** An index and the reason it exists. */
export interface IndexDefinition {
  readonly key: IndexSpecification;
  readonly options?: CreateIndexesOptions;
  readonly why: string;
}

/** A collection's name and its indexes, declared in the file of that collection. */
export interface CollectionDefinition {
  readonly name: string;
  readonly indexes: readonly IndexDefinition[];
}

export interface ClientOptions {
  /** Whether it emits an event for every command, for tracing. Default false. */
  readonly monitorCommands?: boolean;
  /** Whether a command may take as long as it needs, such as the build of an index. Default false. */
  readonly longOperations?: boolean;
}

/** A client for `uri`; connects lazily. The URI may choose its own `maxPoolSize` and `appName`. */
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
    // The driver's default, a plain object, "has" members such as `constructor` and `__proto__`: arrays of these names
    // would be read as bytes.
    fieldsAsRaw: Object.create(null),
    writeConcern: durable,
    readPreference: "primary",
  });
}

const duplicateKeyCode = 11_000;

export function isDuplicateKey(error: unknown): boolean {
  return error instanceof MongoError && error.code === duplicateKeyCode;
}

/** Server codes that pass by themselves: elections, shutdowns, time limits, write concerns not met in time. */
const passingCodes = new Set([
  6, 7, 50, 64, 89, 91, 112, 189, 202, 262, 9001, 10058, 10107, 11600, 11602, 13388, 13435, 13436,
]);

/** Whether the database could not be reached or could not answer in time, so that the same operation may succeed later. */
export function isPassing(error: unknown): boolean {
  if (error instanceof MongoServerSelectionError || error instanceof MongoNetworkError) return true;
  if (error instanceof MongoServerError)
    return passingCodes.has(Number(error.code)) || error.hasErrorLabel("RetryableWriteError");
  // What is left of the driver's own errors: pool cleared, topology closed, not connected, timed out.
  return error instanceof MongoError;
}

/** The error for a caller: unavailable when it passes by itself, otherwise as it was. */
export function faultOfDatabase(error: unknown): unknown {
  return isPassing(error) ? unavailable(error) : error;
}

/**
 * The operation's outcome, or a passing error once it has taken too long: it may have been done or not.
 * @param withinMs default: longer than any may take. Ours, since the driver's `timeoutMS` bounds no single command.
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

/** A try that took longer than this is not followed by another: what waits longer must be told, in milliseconds. */
const retryWithinMs = 2_500;

/**
 * Runs `operation` again, at most `triesMax` times, while it fails for a passing reason. For idempotent operations only.
 * Bounded in time: no try begins later than 2.5 s after the first, and none lasts longer than `databaseTimeouts` say.
 */
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

/** What became of each write: done, refused by a unique key, or its own error. */
export type Written = Settled<"written" | "duplicate">;

/**
 * Inserts documents without order, durably, as one command. The command is sent directly and not through the driver's
 * bulk API, which measures every document before it serialises it and can report a network error as a bulk error without
 * write errors. Sent again after a passing error: ids are given by us, so a document stored by the first try comes back
 * as a duplicate.
 * @throws when the outcome of the whole command is not known.
 */
export function insertDurably(db: Db, collection: string, documents: readonly Document[]): Promise<Written[]> {
  return write(db, documents, (part) => ({ insert: collection, documents: part }));
}

/** One statement of the server's update command. */
export interface UpdateStatement {
  readonly q: Document;
  readonly u: Document;
  readonly upsert: boolean;
}

/** Updates without order, durably, as one command; as insertDurably. For updates that may be done twice. */
export function updateDurably(db: Db, collection: string, updates: readonly UpdateStatement[]): Promise<Written[]> {
  return write(db, updates, (part) => ({ update: collection, updates: part }));
}

async function write<T>(db: Db, items: readonly T[], commandOf: (part: readonly T[]) => Document): Promise<Written[]> {
  try {
    return outcomesOf(await retried(() => run(db, commandOf(items))), items.length);
  } catch (error) {
    if (items.length < 2 || !isTooLarge(error)) throw error;
    const half = items.length >> 1;
    return [...(await write(db, items.slice(0, half), commandOf)), ...(await write(db, items.slice(half), commandOf))];
  }
}

/** The reply, once every write in it is durable or refused for good. */
async function run(db: Db, command: Document): Promise<Document> {
  const reply = await db.command({ ...command, ordered: false, writeConcern: { ...durable, wtimeout: 8_000 } });
  if (reply.writeConcernError !== undefined) throw new MongoWriteConcernError(reply as never);
  // Such as a step-down in the midst of the batch: the same writes may pass on another try.
  const passing = ((reply.writeErrors ?? []) as WriteError[]).find(({ code }) => passingCodes.has(code));
  if (passing !== undefined) throw new MongoServerError({ message: passing.errmsg, code: passing.code });
  return reply;
}

interface WriteError {
  readonly index: number;
  readonly code: number;
  readonly errmsg: string;
}

function outcomesOf(reply: Document, count: number): Written[] {
  const outcomes: Written[] = Array.from({ length: count }, () => ({ value: "written" }));
  for (const { index, code, errmsg } of (reply.writeErrors ?? []) as WriteError[]) {
    outcomes[index] =
      code === duplicateKeyCode ? { value: "duplicate" } : { error: new Error(`write refused: ${code} ${errmsg}`) };
  }
  return outcomes;
}

/** A command takes 16 MB; the driver's buffer ends a little above that, with a RangeError. Nothing of it was done. */
const isTooLarge = (error: unknown) =>
  error instanceof RangeError || (error instanceof MongoServerError && error.code === 10_334);
