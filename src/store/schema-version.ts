/**
 * The version of the collections and indexes; raise it with every change. Ingest also runs on the next version's
 * layout, so that operators can run `ingest migrate` first and then replace instances one by one.
 */
export const schemaVersion = 3;
