/**
 * The version of the collections and indexes. Raise it with every change that concerns the version before. A collection
 * that only the new version knows needs no new number: its missing indexes say that `ingest migrate` must run. Ingest
 * also runs on the next version's layout, so that operators can run `ingest migrate` first and then replace instances
 * one by one.
 */
export const schemaVersion = 3;
