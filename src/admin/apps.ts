import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import type { ClientSession } from "mongodb";
import { Fault } from "../errors.ts";
import { AppSchema, UpdateAppRequestSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional } from "../ingest/shapes.ts";
import { validate } from "../ingest/validate.ts";
import { type AppDocument, appCollection } from "../store/apps.ts";
import type { AdminCall } from "./call.ts";
import { auditOf, change } from "./change.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { pageOf } from "./pages.ts";
import { name, slug, types } from "./shapes.ts";
import { changesOf, checkEtag, etagOf } from "./update.ts";

const createSchema = object({ slug, name: optional(name), allow: types });
const updateSchema = object({ name, allow: types });

export const createApp: Handler<"createApp"> = (request, call) =>
  change(call, request, async (session) => {
    const { _id: organizationId } = await call.organization(request.organizationId, session);
    const { name = request.slug, ...settings } = validate(createSchema, request);
    await checkSlug(call, organizationId, settings.slug, session);
    const document = newApp(call.services.ids.next("app"), { organizationId, name, ...settings }, call.nowDate);
    await appCollection(call.db).insertOne(document, { session });
    const answer = appOf(document);
    return { answer, audit: auditOf(AppSchema, idsOf(document), undefined, answer) };
  });

export const newApp = (
  _id: string,
  settings: Pick<AppDocument, "organizationId" | "slug" | "name" | "allow">,
  createdAt: Date,
): AppDocument => ({ _id, ...settings, createdAt });

/** @throws Fault already_exists. The unique index refuses what another transaction inserts meanwhile. */
async function checkSlug(call: AdminCall, organizationId: string, slug: string, session: ClientSession): Promise<void> {
  const other = await appCollection(call.db).findOne({ organizationId, slug }, { session });
  if (other !== null) throw new Fault("already_exists", `The app '${other._id}' has the slug '${slug}' already.`);
}

export const listApps: Handler<"listApps"> = async (request, call) => {
  const { _id: organizationId } = await call.organization(request.organizationId);
  const filter = { organizationId, deletedAt: { $exists: false } };
  const { documents, nextPageToken } = await pageOf(call, appCollection(call.db), filter, request);
  return { apps: documents.map(appOf), nextPageToken };
};

export const getApp: Handler<"getApp"> = async ({ appId }, call) => appOf(await call.app(appId));

export const updateApp: Handler<"updateApp"> = (request, call) =>
  change(call, request, async (session) => {
    const before = await call.app(request.appId, session);
    const changes = changesOf(UpdateAppRequestSchema, request);
    checkEtag(request.etag, versionOf(before), "app", before._id);
    const after = { ...before, ...validate(updateSchema, { ...before, ...changes }) };
    const [was, is] = [appOf(before), appOf(after)];
    const audit = auditOf(AppSchema, idsOf(before), was, is);
    const { name, allow } = after;
    if (audit !== undefined) {
      await appCollection(call.db).updateOne({ _id: before._id }, { $set: { name, allow } }, { session });
    }
    return { answer: is, audit };
  });

/** Its keys find the app deleted, so no write of each of them is needed. */
export const deleteApp: Handler<"deleteApp"> = (request, call) =>
  change(call, request, async (session) => {
    const app = await call.app(request.appId, session);
    checkEtag(request.etag, versionOf(app), "app", app._id);
    const { _id, slug } = app;
    // No slug looks like an id, so the freed one is unique.
    const $set = { deletedAt: call.nowDate, slug: _id, deletedSlug: slug };
    await appCollection(call.db).updateOne({ _id }, { $set }, { session });
    return { answer: {}, audit: auditOf(AppSchema, idsOf(app), appOf(app), undefined) };
  });

const idsOf = ({ _id, organizationId }: AppDocument) => ({ organizationId, target: _id });

/** The members whose change makes an etag stale. */
const versionOf = ({ name, allow }: AppDocument) => ({ name, allow });

export function appOf(document: AppDocument): Answer<"getApp"> {
  const { _id, organizationId, slug, deletedSlug = slug, name, allow, createdAt } = document;
  const etag = etagOf(versionOf(document));
  return { id: _id, organizationId, slug: deletedSlug, name, allow, createdAt: timestampFromDate(createdAt), etag };
}
