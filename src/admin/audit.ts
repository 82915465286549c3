import { create, type JsonObject } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { Filter } from "mongodb";
import { AuditEntrySchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional, text } from "../ingest/shapes.ts";
import { validate } from "../ingest/validate.ts";
import { restJson } from "../message-json.ts";
import { type AuditDocument, auditCollection } from "../store/audit.ts";
import { actorOf } from "./actor.ts";
import { kinds } from "./call.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { idsBetween, pageOf } from "./pages.ts";

/** Longer than any id of an OIDC subject. */
const actorCharactersMax = 1_000;
const filterSchema = object({ actor: optional(text(actorCharactersMax)) });

export const listAuditEntries: Handler<"listAuditEntries"> = async (request, call) => {
  const organizationId = request.organizationId ?? call.identity.organizationId;
  if (organizationId === undefined) call.checkRole();
  else await call.organization(organizationId);
  const { actor } = validate(filterSchema, { actor: request.actor });
  const filter: Filter<AuditDocument> = {
    ...(organizationId === undefined ? {} : { organizationId }),
    ...(actor === undefined ? {} : { "actor.id": actor }),
    ...idsBetween("aud", ["from", request.from], ["to", request.to]),
  };
  const isKept = { $or: [{ expiresAt: { $exists: false } }, { expiresAt: { $gt: call.nowDate } }] };
  const page = await pageOf(call, auditCollection(call.db), filter, request, { also: isKept });
  return { entries: page.documents.map(entryOf), nextPageToken: page.nextPageToken };
};

type Entry = NonNullable<Answer<"listAuditEntries">["entries"]>[number];

function entryOf({ _id, at, actor, organizationId, before, after, ...facts }: AuditDocument): Entry {
  const { peer, requestId, action, target } = facts;
  return {
    id: _id,
    at: timestampFromDate(at),
    actor: actorOf(actor),
    ...{ peer, requestId, action, target },
    ...(organizationId === undefined ? {} : { organizationId }),
    ...(before === undefined ? {} : { before: JSON.parse(before) as JsonObject }),
    ...(after === undefined ? {} : { after: JSON.parse(after) as JsonObject }),
  };
}

/**
 * An entry for the log, as REST writes it. The names of workers are left out, because an erasure does not reach what a log
 * collector keeps.
 */
export function logLineOf(entry: AuditDocument): JsonObject {
  const { before, after, ...facts } = entryOf(entry);
  const isOfWorker = entry.target.startsWith(kinds.worker.prefix);
  return restJson(AuditEntrySchema, create(AuditEntrySchema, isOfWorker ? facts : { ...facts, before, after }));
}
