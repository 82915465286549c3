import type { App, Organization } from "../gen/ingest/admin/v1/admin_pb.js";
import { list, record } from "./output.ts";
import type { Column } from "./table.ts";

/** One list of columns for each kind of answer, for its table and its record. */

const organizationColumns: readonly Column<Organization>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ name }) => name, cutTo: 12 },
  { name: "API", of: ({ api }) => api },
  { name: "events/month", of: ({ quotaEventsPerMonth }) => quotaEventsPerMonth },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
  { name: "key rate/s", of: ({ keyRequestsPerSecond }) => keyRequestsPerSecond, optional: true },
  { name: "org rate/s", of: ({ organizationRequestsPerSecond }) => organizationRequestsPerSecond, optional: true },
];
export const printOrganization = record<Organization>([
  ...organizationColumns,
  { name: "days kept", of: ({ retentionDays }) => (retentionDays === 0 ? "all" : retentionDays) },
]);
export const printOrganizations = list(organizationColumns);

const appColumns: readonly Column<App>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "slug", of: ({ slug }) => slug, cutTo: 10 },
  { name: "name", of: ({ name }) => name, cutTo: 10 },
  { name: "may send", of: ({ allow }) => allow, cutTo: 12 },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
];
export const printApp = record<App>([
  ...appColumns.slice(0, 4),
  { name: "organisation", of: ({ organizationId }) => organizationId },
  ...appColumns.slice(4),
]);
export const printApps = list(appColumns);
