import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ClientSession, Filter } from "mongodb";
import { newAccessToken } from "../access/access-token.ts";
import { hashOfKey, hintOfKey } from "../access/principal.ts";
import { Fault } from "../errors.ts";
import { AccessTokenSchema, Role } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional } from "../ingest/shapes.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { type AccessTokenDocument, accessTokenCollection } from "../store/access-tokens.ts";
import { findKeyUses } from "../store/key-uses.ts";
import type { AdminCall } from "./call.ts";
import { auditOf, change } from "./change.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { pageOf } from "./pages.ts";
import { future, name, role } from "./shapes.ts";

const createSchema = object({ name, role, expiresAt: optional(future) });
const listSchema = object({ role: optional(role) });

export const createToken: Handler<"createToken"> = (request, call) =>
  change(call, request, async (session) => {
    const { expiresAt, ...settings } = validate(createSchema, request, { receivedAt: call.nowDate });
    call.checkRole(settings.role === "operator" ? "operator" : "manager", "a new access token of that role");
    const organizationId = await organizationOf(call, settings.role, request.organizationId, session);
    const { document, secret } = newToken(
      call.services.ids.next("tok"),
      { ...settings, organizationId, expiresAt },
      call.nowDate,
    );
    await accessTokenCollection(call.db).insertOne(document, { session });
    const token = tokenOf(document);
    return { answer: { token, secret }, audit: auditOf(AccessTokenSchema, idsOf(document), undefined, token) };
  });

export function newToken(
  _id: string,
  {
    organizationId,
    expiresAt,
    ...settings
  }: Pick<AccessTokenDocument, "name" | "role"> & {
    readonly organizationId?: string | undefined;
    readonly expiresAt?: Date | undefined;
  },
  createdAt: Date,
  secret: string = newAccessToken(),
): { readonly document: AccessTokenDocument; readonly secret: string } {
  const document = {
    ...{ _id, hash: hashOfKey(secret), hint: hintOfKey(secret) },
    ...settings,
    ...(organizationId === undefined ? {} : { organizationId }),
    ...{ expiresAt: expiresAt ?? null, revokedAt: null, createdAt },
  };
  return { document, secret };
}

/**
 * The organisation of a new token: what the caller asks for, or its own.
 * @throws Fault invalid_body if the role does not fit, not_found.
 */
async function organizationOf(
  call: AdminCall,
  role: AccessTokenDocument["role"],
  asked: string | undefined,
  session: ClientSession,
): Promise<string | undefined> {
  const organizationId = asked ?? call.identity.organizationId;
  if (role === "operator") {
    if (asked === undefined) return undefined;
    throw invalidMember("organizationId", "must be absent: an operator's token is for the whole installation");
  }
  if (organizationId === undefined) {
    if (role === "viewer") return undefined;
    throw invalidMember("organizationId", "must be given: a manager's token is for one organisation; it is missing");
  }
  return (await call.organization(organizationId, session))._id;
}

export const listTokens: Handler<"listTokens"> = async (request, call) => {
  call.checkRole();
  const { role } = validate(listSchema, request);
  const asked = request.organizationId;
  const organizationId = asked === undefined ? call.identity.organizationId : (await call.organization(asked))._id;
  const filter: Filter<AccessTokenDocument> = {
    ...(role === undefined ? {} : { role }),
    ...(organizationId === undefined ? {} : { organizationId }),
  };
  const { documents, nextPageToken } = await pageOf(call, accessTokenCollection(call.db), filter, request);
  const ids = documents.map(({ _id }) => _id);
  const uses = await findKeyUses(call.db, ids);
  return { tokens: documents.map((token) => tokenOf(token, uses.get(token._id))), nextPageToken };
};

export const revokeToken: Handler<"revokeToken"> = (request, call) =>
  change(call, request, async (session) => {
    const collection = accessTokenCollection(call.db);
    const found = await collection.findOne({ _id: request.tokenId }, { session });
    const { kind, id } = call.identity;
    // Everybody may revoke its own token.
    const least = kind === "token" && id === found?._id ? "viewer" : undefined;
    const before = call.visible("token", request.tokenId, found, found?.organizationId, least);
    const { _id } = before;
    const after = { ...before, revokedAt: before.revokedAt ?? call.nowDate };
    if (before.revokedAt === null) {
      await keepOperator(call, before, session);
      await collection.updateOne({ _id }, { $set: { revokedAt: after.revokedAt } }, { session });
    }
    const lastUsedAt = (await findKeyUses(call.db, [_id])).get(_id);
    const [was, is] = [tokenOf(before, lastUsedAt), tokenOf(after, lastUsedAt)];
    return { answer: is, audit: auditOf(AccessTokenSchema, idsOf(before), was, is) };
  });

/**
 * Makes sure that a valid operator token is left. It writes to that one, so of two revocations that count on each
 * other's token, the database lets only one through.
 * @throws Fault failed_precondition.
 */
async function keepOperator(call: AdminCall, token: AccessTokenDocument, session: ClientSession): Promise<void> {
  const now = call.nowDate;
  const { _id, role, expiresAt } = token;
  if (role !== "operator" || (expiresAt !== null && expiresAt <= now)) return;
  const isValid = { revokedAt: null, $or: [{ expiresAt: null }, { expiresAt: { $gt: now } }] };
  const left = await accessTokenCollection(call.db).updateOne(
    { role: "operator", _id: { $ne: _id }, ...isValid },
    // Another value each time: the server ignores a write that changes nothing.
    { $set: { leftBy: _id } },
    { session },
  );
  if (left.matchedCount > 0) return;
  const what = "is the last valid one of an operator. Create another one first.";
  throw new Fault("failed_precondition", `The access token '${_id}' ${what}`);
}

const idsOf = ({ _id, organizationId }: AccessTokenDocument) => ({ organizationId, target: _id });

function tokenOf(token: AccessTokenDocument, lastUsedAt?: Date): Answer<"revokeToken"> {
  const { _id, name, hint, role, organizationId, createdAt, expiresAt, revokedAt } = token;
  const times = { expiresAt, revokedAt, lastUsedAt };
  return {
    ...{ id: _id, name, hint },
    role: Role[role.toUpperCase() as "VIEWER"],
    ...(organizationId === undefined ? {} : { organizationId }),
    createdAt: timestampFromDate(createdAt),
    ...Object.fromEntries(Object.entries(times).flatMap(([time, at]) => (at ? [[time, timestampFromDate(at)]] : []))),
  };
}
