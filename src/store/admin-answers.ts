import type { Binary, Db } from "mongodb";
import type { CollectionDefinition } from "./database.ts";

/** The first answer of a call with an idempotency key, written in the transaction of its change. */
export interface AdminAnswerDocument {
  /** SHA-256 of caller, RPC and idempotency key, base64url. With `/secret` behind it: the answer's secret. */
  _id: string;
  /** SHA-256 of the request, base64url; absent with a secret. */
  request?: string;
  /** The answer's message without its secret, or the encrypted secret. */
  answer: Binary;
  /** The id of the object that it answers, if it has one. */
  subject?: string;
  expiresAt: Date;
}

export const adminAnswers: CollectionDefinition = {
  name: "adminAnswers",
  indexes: [
    { key: { expiresAt: 1 }, options: { expireAfterSeconds: 0 }, why: "the server removes expired answers" },
    { key: { subject: 1 }, options: { sparse: true }, why: "an erasure removes answers with its worker's names" },
  ],
};

export const adminAnswerCollection = (db: Db) => db.collection<AdminAnswerDocument>(adminAnswers.name);
