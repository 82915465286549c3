/**
 * The layout of the database that this version writes: its collections and their indexes. Raise it with every change of
 * them. A version also runs on the next layout, so that `ingest migrate` can run before instances are replaced one by one.
 */
export const schemaVersion = 3;
