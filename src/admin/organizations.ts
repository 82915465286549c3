import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { OrganizationSchema, UpdateOrganizationRequestSchema } from "../gen/ingest/admin/v1/admin_pb.js";
import { object, optional } from "../ingest/shapes.ts";
import { validate } from "../ingest/validate.ts";
import { limits } from "../limits.ts";
import { type OrganizationDocument, organizationCollection } from "../store/organizations.ts";
import type { AdminCall } from "./call.ts";
import { auditOf, change } from "./change.ts";
import type { Answer, Handler } from "./dispatch.ts";
import { pageOf } from "./pages.ts";
import { flag, name, quota, rate, retentionDays } from "./shapes.ts";
import { changesOf, checkEtag, etagOf } from "./update.ts";

const defaultQuotaEvents = 1_000_000;

const plan = {
  api: optional(flag),
  quotaEventsPerMonth: optional(quota),
  keyRequestsPerSecond: optional(rate),
  organizationRequestsPerSecond: optional(rate),
  retentionDays: optional(retentionDays),
};
const createSchema = object({ name, ...plan });

export const createOrganization: Handler<"createOrganization"> = async (request, call) => {
  call.checkRole();
  const settings = validate(createSchema, request);
  const document = newOrganization(call.services.ids.next("org"), settings, call.nowDate);
  return change(call, request, async (session) => {
    await organizationCollection(call.db).insertOne(document, { session });
    const answer = organizationOf(document);
    return { answer, audit: auditOf(OrganizationSchema, idsOf(document), undefined, answer) };
  });
};

export const newOrganization = (
  _id: string,
  { name, retentionDays, ...settings }: Partial<PlanOf> & { readonly name: string },
  createdAt: Date,
): OrganizationDocument => ({
  _id,
  name,
  api: settings.api ?? true,
  quotaEventsPerMonth: settings.quotaEventsPerMonth ?? defaultQuotaEvents,
  keyRequestsPerSecond: settings.keyRequestsPerSecond ?? limits.keyRequestsPerSecond,
  organizationRequestsPerSecond: settings.organizationRequestsPerSecond ?? limits.organizationRequestsPerSecond,
  ...(retentionDays === undefined ? {} : { retainDays: retentionDays }),
  createdAt,
});

type PlanOf = { [Name in keyof typeof plan]: ReturnType<(typeof plan)[Name]["read"]> };

export const listOrganizations: Handler<"listOrganizations"> = async (request, call) => {
  call.checkRole();
  const { organizationId } = call.identity;
  const filter = organizationId === undefined ? {} : { _id: organizationId };
  const { documents, nextPageToken } = await pageOf(call, organizationCollection(call.db), filter, request);
  return { organizations: documents.map(organizationOf), nextPageToken };
};

export const getOrganization: Handler<"getOrganization"> = async ({ organizationId }, call) =>
  organizationOf(await call.organization(organizationId));

export const updateOrganization: Handler<"updateOrganization"> = (request, call) =>
  change(call, request, async (session) => {
    const before = await call.organization(request.organizationId, session);
    const changes = changesOf(UpdateOrganizationRequestSchema, request);
    if (Object.keys(changes).some((member) => member !== "name")) checkPlan(call);
    checkEtag(request.etag, versionOf(before), "organization", before._id);
    const { name, ...settings } = validate(createSchema, { ...settingsOf(before), ...changes });
    const after = newOrganization(before._id, { name, ...settings }, before.createdAt);
    const [was, is] = [organizationOf(before), organizationOf(after)];
    const audit = auditOf(OrganizationSchema, idsOf(before), was, is);
    if (audit !== undefined) {
      const { _id, ...members } = after;
      await organizationCollection(call.db).replaceOne({ _id }, members, { session });
    }
    return { answer: is, audit };
  });

const checkPlan = (call: AdminCall) => call.checkRole("operator", "a change of an organisation's plan");

const idsOf = ({ _id }: OrganizationDocument) => ({ organizationId: _id, target: _id });

const settingsOf = ({ _id, createdAt, retainDays, ...settings }: OrganizationDocument) => ({
  ...settings,
  retentionDays: retainDays,
});

/** The members whose change makes an etag stale. */
const versionOf = settingsOf;

export function organizationOf(document: OrganizationDocument): Answer<"getOrganization"> {
  const { _id, createdAt, retainDays, ...settings } = document;
  return {
    id: _id,
    ...settings,
    ...(retainDays === undefined ? {} : { retentionDays: retainDays }),
    createdAt: timestampFromDate(createdAt),
    etag: etagOf(versionOf(document)),
  };
}
