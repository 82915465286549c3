import { createCipheriv, createDecipheriv, hash, hkdfSync, randomBytes } from "node:crypto";
import { isDeepStrictEqual } from "node:util";
import {
  create,
  type DescMessage,
  fromBinary,
  type JsonObject,
  type Message,
  type MessageInitShape,
  toBinary,
} from "@bufbuild/protobuf";
import type { ClientSession } from "mongodb";
import { Admin } from "../gen/ingest/admin/v1/admin_pb.js";
import { timeOfId } from "../ids.ts";
import { object, optional, printable } from "../ingest/shapes.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { restJson } from "../message-json.ts";
import { type AdminAnswerDocument, adminAnswerCollection } from "../store/admin-answers.ts";
import { type AuditDocument, auditCollection } from "../store/audit.ts";
import { bounded, durable } from "../store/database.ts";
import { announce, workersOf } from "../store/revisions.ts";
import type { AdminCall } from "./call.ts";

/** What a change leaves in the audit. */
export interface AuditFacts {
  readonly organizationId: string | undefined;
  /** The id of the object. */
  readonly target: string;
  /** The members that changed, without secrets; absent for a new object. */
  readonly before?: JsonObject | undefined;
  /** Absent for an object that is gone. */
  readonly after?: JsonObject | undefined;
}

export interface Changed<Answer> {
  readonly answer: Answer;
  /** Undefined if nothing changed. */
  readonly audit: AuditFacts | undefined;
}

/**
 * Makes a change, its audit entry, the news for all instances and, with an idempotency key, the memory of its first answer:
 * all of them or none, in one transaction. `work` may run several times, and must do all its reads and writes in the session.
 * @returns the answer, or the first one's if another call with the same idempotency key was faster.
 */
export async function change<Answer extends object>(
  call: AdminCall,
  request: Repeatable,
  work: (session: ClientSession) => Promise<Changed<Answer>>,
): Promise<Answer> {
  const key = idempotencyKeyOf(request);
  let entry: AuditDocument | undefined;
  const run = () =>
    call.db.client.withSession((session) =>
      session.withTransaction(
        async () => {
          const { answer, audit } = await work(session);
          if (!call.isChecked) throw new Error(`${call.rpcName} changes an object without a check of the role`);
          entry = audit === undefined ? undefined : entryOf(call, audit);
          if (entry !== undefined) await auditCollection(call.db).insertOne(entry, { session });
          if (audit !== undefined) await announce(call.db, newsOf(audit), session);
          if (key !== undefined) {
            const kept = answersOf(call, request, key, answer);
            const expired = { _id: { $in: kept.map(({ _id }) => _id) }, expiresAt: { $lte: call.nowDate } };
            await adminAnswerCollection(call.db).deleteMany(expired, { session });
            await adminAnswerCollection(call.db).insertMany(kept, { session });
          }
          return answer;
        },
        { readConcern: { level: "snapshot" }, writeConcern: durable },
      ),
    );
  /** Also if the change takes so long that its caller has got an error. */
  const reported = (answer: Answer) => {
    if (entry !== undefined) call.services.onAudit?.(entry);
    return answer;
  };
  try {
    return (await call.services.turns.submit({
      callerId: call.identity.id,
      run: () => bounded(run().then(reported)),
    })) as Answer;
  } catch (error) {
    // Another call with the same key may have made the change first, so that this one found it made.
    const kept = key === undefined ? undefined : await keptAnswer(call, request);
    if (kept === undefined) throw error;
    return kept as never;
  }
}

/** What instances remember of the changed object. */
function newsOf({ organizationId, target }: AuditFacts): string[] {
  if (/^(org|app|key)_/.test(target)) return [target];
  return /^(wrk|ers)_/.test(target) && organizationId !== undefined ? [workersOf(organizationId)] : [];
}

/** The members that differ between two versions of an object, for the audit; undefined if none does. */
export function auditOf<Desc extends DescMessage>(
  desc: Desc,
  { organizationId, target }: Pick<AuditFacts, "organizationId" | "target">,
  before: MessageInitShape<Desc> | undefined,
  after: MessageInitShape<Desc> | undefined,
): AuditFacts | undefined {
  const [was, is] = [before, after].map((one) => (one === undefined ? {} : restJson(desc, create(desc, one))));
  const names = [...new Set([...Object.keys(was ?? {}), ...Object.keys(is ?? {})])].filter(
    (name) => !passing.has(name) && !isDeepStrictEqual(was?.[name], is?.[name]),
  );
  if (names.length === 0) return undefined;
  const only = (json: JsonObject | undefined) =>
    Object.fromEntries(names.flatMap((name) => (json?.[name] === undefined ? [] : [[name, json[name]]])));
  return {
    organizationId,
    target,
    before: before === undefined ? undefined : only(was),
    after: after === undefined ? undefined : only(is),
  };
}

/** Members that change without a change of the object. */
const passing: ReadonlySet<string> = new Set(["etag", "lastUsedAt", "actedAfterMs"]);

function entryOf(call: AdminCall, { organizationId, target, before, after }: AuditFacts): AuditDocument {
  const { ids, auditDays } = call.services;
  const { kind, id, name, role } = call.identity;
  const _id = ids.next("aud");
  // The same time, because lists select entries by their ids.
  const at = timeOfId(_id);
  return {
    ...{ _id, at },
    actor: { kind, id, name, role },
    peer: call.facts.peer,
    requestId: call.facts.requestId,
    action: call.rpcName,
    ...(organizationId === undefined ? {} : { organizationId }),
    target,
    ...(before === undefined ? {} : { before: JSON.stringify(before) }),
    ...(after === undefined ? {} : { after: JSON.stringify(after) }),
    ...(auditDays === 0 ? {} : { expiresAt: new Date(at.getTime() + auditDays * 86_400_000) }),
  };
}

const keptMs = 24 * 3_600_000;
const secretKeptMs = 60_000;

const keySchema = object({ idempotencyKey: optional(printable(200)) });

/** @throws Fault invalid_body. */
function idempotencyKeyOf(request: Repeatable): string | undefined {
  return validate(keySchema, { idempotencyKey: request.idempotencyKey }).idempotencyKey;
}

type Repeatable = Message & { readonly idempotencyKey?: string | undefined };

const digest = (data: string | Uint8Array) => hash("sha256", data, "base64url");
/** The same person with another role is another caller: it may no longer see the first answer. */
const answerId = ({ identity: { kind, id, role, organizationId }, rpcName }: AdminCall, key: string) =>
  digest(JSON.stringify([kind, id, role, organizationId, rpcName, key]));
const fingerprint = ({ facts }: AdminCall, request: Message) =>
  digest(toBinary(Admin.method[facts.rpc].input as DescMessage, request));

/** The documents that remember an answer; its secret has one of its own, because it goes earlier. */
function answersOf(call: AdminCall, request: Message, key: string, answer: object): AdminAnswerDocument[] {
  const { output } = Admin.method[call.facts.rpc] as { output: DescMessage };
  const { secret, ...rest } = answer as { secret?: string; id?: string };
  const _id = answerId(call, key);
  const nowMs = call.services.now();
  const document = {
    _id,
    request: fingerprint(call, request),
    answer: toBinary(output, create(output, rest)) as never,
    ...(rest.id === undefined ? {} : { subject: rest.id }),
    expiresAt: new Date(nowMs + keptMs),
  };
  if (secret === undefined) return [document];
  const sealed = seal(secret, sealingKey(call, key)) as never;
  return [document, { _id: `${_id}/secret`, answer: sealed, expiresAt: new Date(nowMs + secretKeptMs) }];
}

/**
 * The first answer to this idempotency key; undefined if there is none. Its secret is there for a minute.
 * @throws Fault invalid_body if the first request was another one.
 */
export async function keptAnswer(call: AdminCall, request: Repeatable): Promise<Message | undefined> {
  const key = idempotencyKeyOf(request);
  if (key === undefined) return undefined;
  const _id = answerId(call, key);
  const filter = { _id: { $in: [_id, `${_id}/secret`] }, expiresAt: { $gt: call.nowDate } };
  const kept = await bounded(adminAnswerCollection(call.db).find(filter, { readConcern: "majority" }).toArray());
  const first = kept.find((one) => one._id === _id);
  if (first === undefined) return undefined;
  if (first.request !== fingerprint(call, request)) {
    const message = `was used for another ${call.rpcName} within the last 24 hours; use a new one`;
    throw invalidMember("idempotencyKey", message);
  }
  const { output } = Admin.method[call.facts.rpc] as { output: DescMessage };
  const answer = fromBinary(output, first.answer.buffer);
  const sealed = kept.find((one) => one !== first);
  const secret = sealed === undefined ? undefined : unseal(sealed.answer.buffer, sealingKey(call, key));
  return secret === undefined ? answer : Object.assign(answer, { secret });
}

/**
 * Only the caller can read a kept secret: the key comes from its access token, which the database does not have. A JWT
 * changes with each sign-in, so there the idempotency key stands alone.
 */
function sealingKey({ identity, facts }: AdminCall, key: string): Buffer {
  const credential = identity.kind === "token" ? facts.authorization?.trim().split(/ +/).at(-1) : "";
  return Buffer.from(hkdfSync("sha256", `${credential}\n${key}`, "", "ingest.admin.v1 kept secret", 32));
}

const [ivBytes, tagBytes] = [12, 16];

function seal(secret: string, key: Buffer): Buffer {
  const iv = randomBytes(ivBytes);
  const cipher = createCipheriv("aes-256-gcm", key, iv);
  const text = Buffer.concat([cipher.update(secret), cipher.final()]);
  return Buffer.concat([iv, cipher.getAuthTag(), text]);
}

function unseal(sealed: Uint8Array, key: Buffer): string {
  const decipher = createDecipheriv("aes-256-gcm", key, sealed.subarray(0, ivBytes));
  decipher.setAuthTag(sealed.subarray(ivBytes, ivBytes + tagBytes));
  return Buffer.concat([decipher.update(sealed.subarray(ivBytes + tagBytes)), decipher.final()]).toString();
}
