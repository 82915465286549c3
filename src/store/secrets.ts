import { randomBytes } from "node:crypto";
import type { Binary, Db } from "mongodb";
import { bounded, type CollectionDefinition, durable, isDuplicateKey } from "./database.ts";

export interface SecretDocument {
  _id: string;
  value: Binary;
}

export const secrets: CollectionDefinition = { name: "secrets", indexes: [] };

const secretBytes = 32;

/** Reads a random secret that only the instances share. The first one that asks makes it. */
export async function sharedSecret(db: Db, name: string): Promise<Buffer> {
  const collection = db.collection<SecretDocument>(secrets.name);
  for (;;) {
    const found = await bounded(collection.findOne({ _id: name }, { readConcern: "majority" }));
    if (found !== null) return Buffer.from(found.value.buffer);
    try {
      const secret = { _id: name, value: randomBytes(secretBytes) as never };
      await bounded(collection.insertOne(secret, { writeConcern: durable }));
    } catch (error) {
      if (!isDuplicateKey(error)) throw error;
    }
  }
}
