import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ClientSession } from "mongodb";
import { firstOutside } from "../access/event-types.ts";
import { hashOfKey, hintOfKey, keyPattern, newSecret } from "../access/principal.ts";
import { Fault } from "../errors.ts";
import { KeySchema, KeyStatus, Scope, UpdateKeyRequestSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional } from "../ingest/shapes.ts";
import { given, invalidMember, validate } from "../ingest/validate.ts";
import { type AppDocument, appCollection } from "../store/apps.ts";
import { findKeyUses } from "../store/key-uses.ts";
import { type KeyDocument, type KeyScope, keyCollection, scopesOf } from "../store/keys.ts";
import { appOf } from "./apps.ts";
import type { AdminCall } from "./call.ts";
import { type AuditFacts, auditOf, change } from "./change.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { organizationOf } from "./organizations.ts";
import { pageOf } from "./pages.ts";
import { cidrs, future, grace, moment, name, scopes, scopesOrNone, types } from "./shapes.ts";
import { changesOf, checkEtag, etagOf } from "./update.ts";

const createSchema = object({
  name: optional(name),
  scopes: scopesOrNone,
  eventTypes: types,
  cidrs,
  expiresAt: optional(future),
});
const updateSchema = object({
  name: optional(name),
  scopes: optional(scopes),
  eventTypes: optional(types),
  cidrs: optional(cidrs),
  expiresAt: optional(moment),
});

/** What callers choose when they create a key, and may change later. */
interface KeySettings {
  readonly name?: string | undefined;
  readonly scopes?: readonly KeyScope[] | undefined;
  /** Absent or empty: all that the app may send. */
  readonly eventTypes?: readonly string[] | undefined;
  /** Absent or empty: every address. */
  readonly cidrs?: readonly string[] | undefined;
  /** Absent: never. */
  readonly expiresAt?: Date | undefined;
}

export const createKey: Handler<"createKey"> = (request, call) =>
  change(call, request, async (session) => {
    const app = await call.app(request.appId, session);
    const settings = validate(createSchema, request, { receivedAt: call.nowDate });
    checkTypes(settings.eventTypes, app);
    const { document, secret } = newKey(
      call.services.ids.next("key"),
      app,
      { ...settings, test: request.test },
      call.nowDate,
    );
    await keyCollection(call.db).insertOne(document, { session });
    const key = await shownKey(call, document, app);
    return { answer: { key, secret }, audit: auditOf(KeySchema, idsOf(document), undefined, key) };
  });

/** A key as the database holds it, beside its secret. */
export function newKey(
  _id: string,
  { _id: appId, organizationId }: Pick<AppDocument, "_id" | "organizationId">,
  { test, ...settings }: KeySettings & { readonly test?: boolean | undefined },
  createdAt: Date,
  secret: string = newSecret(test),
): { readonly document: KeyDocument; readonly secret: string } {
  const document: KeyDocument = {
    ...{ _id, organizationId, appId, hash: hashOfKey(secret), hint: hintOfKey(secret) },
    ...(test === true ? { test } : {}),
    ...fieldsOf(settings),
    ...{ revokedAt: null, createdAt },
  };
  return { document, secret };
}

/** @throws Fault invalid_body that names a type which the app may not send. */
function checkTypes(eventTypes: readonly string[], { _id, allow }: AppDocument): void {
  const outside = firstOutside(eventTypes, allow);
  if (outside === undefined) return;
  const at = `eventTypes[${eventTypes.indexOf(outside)}]`;
  throw invalidMember(at, `must lie within the whitelist of the app '${_id}'${given(outside)}`);
}

export const listKeys: Handler<"listKeys"> = async (request, call) => {
  const app = await call.app(request.appId);
  const { documents, nextPageToken } = await pageOf(call, keyCollection(call.db), { appId: app._id }, request);
  return { keys: await shownKeys(call, documents, app), nextPageToken };
};

export const getKey: Handler<"getKey"> = async ({ keyId }, call) => {
  const key = await call.key(keyId);
  return shownKey(call, key, await appOfKey(call, key));
};

export const updateKey: Handler<"updateKey"> = (request, call) =>
  change(call, request, async (session) => {
    const before = await call.key(request.keyId, session);
    const app = await appOfKey(call, before, session);
    const changes = changesOf(UpdateKeyRequestSchema, request);
    checkNotRevoked(before, app);
    checkEtag(request.etag, versionOf(before), "key", before._id);
    const { name, eventTypes, cidrs, scope, ...fixed } = before;
    const valid = validate(updateSchema, changes);
    if (valid.eventTypes !== undefined) checkTypes(valid.eventTypes, app);
    // A change without a value clears the member.
    const cleared = Object.fromEntries(Object.keys(changes).map((member) => [member, undefined]));
    const after: KeyDocument = { ...fixed, ...fieldsOf({ ...settingsOf(before), ...cleared, ...valid }) };
    const [was, is] = await shownKeys(call, [before, after], app);
    const audit = auditOf(KeySchema, idsOf(before), was, is);
    const { _id, ...members } = after;
    if (audit !== undefined) await keyCollection(call.db).replaceOne({ _id }, members, { session });
    return { answer: is as Answer<"updateKey">, audit };
  });

const rotateSchema = object({ grace: optional(grace) });

export const rotateKey: Handler<"rotateKey"> = (request, call) =>
  change(call, request, async (session) => {
    const old = await call.key(request.keyId, session);
    const app = await appOfKey(call, old, session);
    const { grace = 0 } = validate(rotateSchema, request);
    const now = call.nowDate;
    checkReplaceable(old, app, now);
    const { expiresAt: _, ...settings } = settingsOf(old);
    const { document, secret } = newKey(call.services.ids.next("key"), app, { ...settings, test: old.test }, now);
    const graceEnds = new Date(now.getTime() + grace);
    // It may have to expire earlier anyway.
    const expiresAt = old.expiresAt !== null && old.expiresAt < graceEnds ? old.expiresAt : graceEnds;
    const $set = { expiresAt, replacedBy: document._id };
    await keyCollection(call.db).updateOne({ _id: old._id }, { $set }, { session });
    await keyCollection(call.db).insertOne(document, { session });
    const [key, was, replaced] = await shownKeys(call, [document, old, { ...old, ...$set }], app);
    const answer = { key, secret, replaced } as Answer<"rotateKey">;
    return { answer, audit: auditOf(KeySchema, idsOf(old), was, replaced) };
  });

export const revokeKey: Handler<"revokeKey"> = (request, call) =>
  change(call, request, async (session) => {
    const key = await call.key(request.keyId, session);
    return revoked(call, key, await appOfKey(call, key, session), session);
  });

/** Revokes a key, unless it is revoked already. */
async function revoked(call: AdminCall, before: KeyDocument, app: AppDocument, session: ClientSession) {
  const { _id } = before;
  const revokedAt = revokedAtOf(before, app) ?? call.nowDate;
  if (revokedAtOf(before, app) === null) {
    await keyCollection(call.db).updateOne({ _id }, { $set: { revokedAt } }, { session });
  }
  const [was, is] = await shownKeys(call, [before, { ...before, revokedAt }], app);
  return { answer: is as Answer<"revokeKey">, audit: auditOf(KeySchema, idsOf(before), was, is) };
}

/** Even a malformed secret may be one digit short of a key, so no message quotes it. */
export const findKey: Handler<"findKey"> = (request, call) => {
  call.checkRole();
  const { secret } = request;
  if (!keyPattern.test(secret)) {
    throw invalidMember("secret", "must be a key: wp_live_ or wp_test_, followed by 32 lower-case hex digits");
  }
  return change(call, request, async (session) => {
    const found = await keyCollection(call.db).findOne({ hash: hashOfKey(secret) }, { session });
    if (found === null || !call.sees(found.organizationId)) {
      throw new Fault("not_found", "There is no key with this secret.");
    }
    const app = await appOfKey(call, found, session);
    const organization = organizationOf(await call.organization(found.organizationId, session));
    const looked: AuditFacts = idsOf(found);
    const { answer: key, audit = looked } = request.revoke
      ? await revoked(call, found, app, session)
      : { answer: await shownKey(call, found, app) };
    return { answer: { key, app: appOf(app), organization }, audit };
  });
};

/** The key's app, which may be deleted. */
async function appOfKey(call: AdminCall, { _id, appId }: KeyDocument, session?: ClientSession): Promise<AppDocument> {
  const options = session === undefined ? { readConcern: "majority" as const } : { session };
  const app = await appCollection(call.db).findOne({ _id: appId }, options);
  if (app === null) throw new Error(`the app '${appId}' of the key '${_id}' is missing`);
  return app;
}

/** The deletion of an app revokes its keys, without a write of each. */
const revokedAtOf = (key: KeyDocument, { deletedAt }: AppDocument): Date | null => key.revokedAt ?? deletedAt ?? null;

/** @throws Fault failed_precondition. */
function checkNotRevoked(key: KeyDocument, app: AppDocument): void {
  if (revokedAtOf(key, app) !== null) throw precondition(key, "was revoked. Create a new one instead.");
}

/** @throws Fault failed_precondition. */
function checkReplaceable(key: KeyDocument, app: AppDocument, now: Date): void {
  checkNotRevoked(key, app);
  const { replacedBy, expiresAt } = key;
  if (replacedBy !== undefined) {
    throw precondition(key, `was rotated already: '${replacedBy}' takes its place. Rotate that one.`);
  }
  if (expiresAt !== null && expiresAt <= now) {
    throw precondition(key, `expired at ${expiresAt.toISOString()}. Create a new one instead.`);
  }
}

const precondition = ({ _id }: KeyDocument, what: string) =>
  new Fault("failed_precondition", `The key '${_id}' ${what}`);

const idsOf = ({ _id, organizationId }: KeyDocument) => ({ organizationId, target: _id });

const settingsOf = (key: KeyDocument): KeySettings => ({
  name: key.name,
  scopes: scopesOf(key),
  eventTypes: key.eventTypes,
  cidrs: key.cidrs,
  expiresAt: key.expiresAt ?? undefined,
});

/** The settings as the database holds them. */
const fieldsOf = ({ name, scopes = [], eventTypes = [], cidrs = [], expiresAt }: KeySettings) => ({
  ...(name === undefined ? {} : { name }),
  scopes: scopes.length === 0 ? ["ingest" as const] : [...scopes],
  ...(eventTypes.length === 0 ? {} : { eventTypes: [...eventTypes] }),
  ...(cidrs.length === 0 ? {} : { cidrs: [...cidrs] }),
  expiresAt: expiresAt ?? null,
});

/** The members whose change makes an etag stale. */
const versionOf = (key: KeyDocument) => ({
  ...settingsOf(key),
  revokedAt: key.revokedAt,
  replacedBy: key.replacedBy,
});

/** Keys of one app, as callers see them. */
async function shownKeys(call: AdminCall, keys: readonly KeyDocument[], app: AppDocument) {
  const uses = await findKeyUses(
    call.db,
    keys.map(({ _id }) => _id),
  );
  return keys.map((key) => keyOf({ ...key, revokedAt: revokedAtOf(key, app) }, uses.get(key._id), call.nowDate));
}

const shownKey = async (call: AdminCall, key: KeyDocument, app: AppDocument) =>
  (await shownKeys(call, [key], app))[0] as Answer<"getKey">;

function keyOf(key: KeyDocument, lastUsedAt: Date | undefined, now: Date): Answer<"getKey"> {
  const { _id, organizationId, appId, name = "", hint, eventTypes = [], cidrs = [], test = false } = key;
  const { createdAt, expiresAt, revokedAt, replacedBy } = key;
  const times = { expiresAt, revokedAt, lastUsedAt };
  return {
    ...{ id: _id, organizationId, appId, name, hint, eventTypes, cidrs, test },
    scopes: scopesOf(key).map((scope) => Scope[scope.toUpperCase() as "READ"]),
    status: statusOf(key, now),
    createdAt: timestampFromDate(createdAt),
    ...Object.fromEntries(Object.entries(times).flatMap(([time, at]) => (at ? [[time, timestampFromDate(at)]] : []))),
    ...(replacedBy === undefined ? {} : { replacedBy }),
    etag: etagOf(versionOf(key)),
  };
}

function statusOf({ revokedAt, expiresAt, replacedBy }: KeyDocument, now: Date): KeyStatus {
  if (revokedAt !== null) return KeyStatus.REVOKED;
  if (expiresAt !== null && expiresAt <= now) return KeyStatus.EXPIRED;
  return replacedBy === undefined ? KeyStatus.ACTIVE : KeyStatus.ROTATING;
}
