import type { ClientSession, Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

/**
 * Tells all instances what administration changed. It is one document, and each change writes to it in its own
 * transaction. So its order is the order of the commits.
 */
export interface RevisionDocument {
  _id: "access";
  /** How many changes there were ever. */
  changes?: number;
  /** The ids of the organisations, apps and keys that changed last, in order, and `workersOf` organisations. */
  latest?: string[];
  /** A command raises it after a change whose effect it waits for. */
  revision?: number;
  /** The same for changes of workers. */
  workersRevision?: number;
}

export type RevisionName = "revision" | "workersRevision";

/** An instance that has missed more changes forgets everything. */
export const latestMax = 100;

export const revisions: CollectionDefinition = { name: "revisions", indexes: [] };

export const revisionCollection = (db: Db) => db.collection<RevisionDocument>(revisions.name);

/** News of any workers of the organisation. It names none, so that nothing of an erased worker stays here. */
export const workersOf = (organizationId: string) => `workers of ${organizationId}`;
const workersPattern = /^workers of (.*)$/;

/** The organisation whose workers the news is of; undefined for other news. */
export const organizationOfWorkers = (news: string): string | undefined => workersPattern.exec(news)?.[1];

/** Tells all instances that these objects change, as a part of the session's transaction. */
export async function announce(db: Db, news: readonly string[], session?: ClientSession): Promise<void> {
  const update = {
    $inc: { changes: news.length },
    $push: { latest: { $each: [...news], $slice: -latestMax } },
  };
  const options = { upsert: true, ...(session === undefined ? {} : { session }) };
  await revisionCollection(db).updateOne({ _id: "access" }, update, options);
}
