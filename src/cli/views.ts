import type { JsonObject } from "@bufbuild/protobuf";
import { timestampMs } from "@bufbuild/protobuf/wkt";
import {
  type AccessToken,
  ActorKindSchema,
  type AllowWorkerAgainResponse,
  type App,
  type AuditEntry,
  type CreateKeyResponse,
  type CreateTokenResponse,
  type Erasure,
  type FindKeyResponse,
  type Identity,
  type Instance,
  type Key,
  KeyStatus,
  KeyStatusSchema,
  type Organization,
  type PreviewAllowResponse,
  type RecordedRequest,
  type RecountUsageResponse,
  RequestOutcomeSchema,
  RoleSchema,
  type RotateKeyResponse,
  ScopeSchema,
  type Traffic,
  type Usage,
  type Worker,
  type WorkerLink,
} from "../gen/ingest/admin/v1/admin_pb.js";
import { restName } from "../message-json.ts";
import { list, type Print, record, section } from "./output.ts";
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

/** A month with the outcomes of its events. */
export const printUsage =
  (by: string): Print<Usage> =>
  (usage) => {
    record<Usage>([
      { name: "month", of: ({ month }) => month },
      { name: "events", of: ({ events }) => events },
      { name: "quota", of: ({ quotaEventsPerMonth }) => quotaEventsPerMonth },
    ])(usage);
    section(`By ${by}`, usage.rows, [
      { name: by, of: ({ day, app, type, code }) => (day ?? app ?? type ?? code) || "(others)", cutTo: 20 },
      { name: "accepted", of: ({ accepted }) => accepted },
      { name: "rejected", of: ({ rejected }) => rejected },
      { name: "replayed", of: ({ replayed }) => replayed },
      { name: "duplicates", of: ({ duplicates }) => duplicates },
    ]);
  };

/** The last hour, with the minutes that had requests. */
export const printTraffic: Print<Traffic> = (traffic) => {
  record<Traffic>([
    { name: "requests", of: ({ requests }) => requests },
    { name: "refused", of: ({ refused }) => refused },
    { name: "requests/s", of: ({ requestsPerSecond }) => Number(requestsPerSecond.toPrecision(3)) },
    { name: "p50 ms", of: ({ p50Ms }) => p50Ms },
    { name: "p99 ms", of: ({ p99Ms }) => p99Ms },
  ])(traffic);
  const busy = traffic.minutes.filter(({ requests }) => requests > 0);
  section("By minute", busy, [
    { name: "minute", of: ({ start }) => start },
    { name: "requests", of: ({ requests }) => requests },
    { name: "refused", of: ({ refused }) => refused },
    { name: "p50 ms", of: ({ p50Ms }) => p50Ms },
    { name: "p99 ms", of: ({ p99Ms }) => p99Ms },
  ]);
};

export const printRecount = record<RecountUsageResponse>([
  { name: "month", of: ({ month }) => month },
  { name: "events before", of: ({ before }) => before },
  { name: "events now", of: ({ after }) => after },
]);

function statusOf({ status, expiresAt }: Key): string {
  const name = restName(KeyStatusSchema, status);
  const leftSeconds = expiresAt === undefined ? 0 : (timestampMs(expiresAt) - Date.now()) / 1000;
  if (leftSeconds <= 0) return name;
  if (status === KeyStatus.ROTATING) return `${name}, ${durationOf(leftSeconds)} left`;
  return status === KeyStatus.ACTIVE ? `expires in ${durationOf(leftSeconds)}` : name;
}

/** Uses the largest unit that gives at least 1. */
function durationOf(seconds: number): string {
  const units = [
    ["d", 86_400],
    ["h", 3_600],
    ["min", 60],
  ] as const;
  const [unit, size] = units.find(([, size]) => seconds >= size) ?? ["s", 1];
  return `${Math.floor(seconds / size)} ${unit}`;
}

const keyColumns: readonly Column<Key>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "hint", of: ({ hint }) => hint },
  { name: "scope", of: ({ scopes }) => scopes.map((scope) => restName(ScopeSchema, scope)) },
  { name: "status", of: statusOf },
];
const keyName: Column<Key> = { name: "name", of: ({ name }) => name || undefined, cutTo: 10, optional: true };
const keyTimes: readonly Column<Key>[] = [
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
  { name: "expires", of: ({ expiresAt }) => expiresAt ?? "never", optional: true },
];
const keyLastUse: Column<Key> = { name: "last used", of: ({ lastUsedAt }) => lastUsedAt ?? "never", optional: true };
const keyDetails: readonly Column<Key>[] = [
  ...keyColumns,
  keyName,
  { name: "app", of: ({ appId }) => appId },
  { name: "only types", of: ({ eventTypes }) => textsOf(eventTypes) },
  { name: "only from", of: ({ cidrs }) => textsOf(cidrs) },
  ...keyTimes,
  keyLastUse,
  { name: "revoked", of: ({ revokedAt }) => revokedAt },
  { name: "replaced by", of: ({ replacedBy }) => replacedBy },
  { name: "acted on after", of: ({ actedAfterMs }) => millisecondsOf(actedAfterMs) },
];
export const printKey = record(keyDetails);
/** Columns of a part of an answer, which may be missing. */
const within = <Answer, Part>(
  columns: readonly Column<Part>[],
  partOf: (answer: Answer) => Part | undefined,
): Column<Answer>[] =>
  columns.map(({ of, ...column }) => ({
    ...column,
    of(answer) {
      const part = partOf(answer);
      return part === undefined ? undefined : of(part);
    },
  }));
const textsOf = (texts: readonly string[]) => (texts.length === 0 ? undefined : texts);
const millisecondsOf = (count: number | undefined) => (count === undefined ? undefined : `${count} ms`);
export const printKeys = list<Key>([...keyColumns, keyLastUse, ...keyTimes, keyName]);

const secretOnce = ({ secret }: { readonly secret?: string | undefined }) =>
  secret === undefined ? undefined : `${secret}  (it is not shown again)`;

type NewKey = Pick<CreateKeyResponse, "key" | "secret">;
const newKeyColumns: readonly Column<NewKey>[] = [
  { name: "key", of: secretOnce },
  ...within<NewKey, Key>(keyDetails, ({ key }) => key),
];
export const printNewKey: Print<CreateKeyResponse> = record(newKeyColumns);
export const printRotatedKey: Print<RotateKeyResponse> = record<RotateKeyResponse>([
  ...newKeyColumns,
  { name: "replaces", of: ({ replaced }) => replaced?.id },
  { name: "which expires", of: ({ replaced }) => replaced?.expiresAt },
  { name: "acted on after", of: ({ actedAfterMs }) => millisecondsOf(actedAfterMs) },
]);
export const printFoundKey = record<FindKeyResponse>([
  ...within<FindKeyResponse, Key>(keyDetails, ({ key }) => key),
  { name: "app's name", of: ({ app }) => app?.name },
  { name: "organisation", of: ({ organization }) => organization?.id },
  { name: "its name", of: ({ organization }) => organization?.name },
]);

const tokenColumns: readonly Column<AccessToken>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ name }) => name, cutTo: 10 },
  { name: "role", of: ({ role }) => restName(RoleSchema, role) },
  { name: "organisation", of: ({ organizationId }) => organizationId ?? "all", optional: true },
  { name: "hint", of: ({ hint }) => hint, optional: true },
  { name: "last used", of: ({ lastUsedAt }) => lastUsedAt ?? "never", optional: true },
  { name: "expires", of: ({ expiresAt }) => expiresAt ?? "never", optional: true },
  { name: "revoked", of: ({ revokedAt }) => revokedAt, optional: true },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
];
export const printToken = record(tokenColumns);
export const printTokens = list(tokenColumns);
export const printNewToken = record<CreateTokenResponse>([
  { name: "token", of: secretOnce },
  ...within<CreateTokenResponse, AccessToken>(tokenColumns, ({ token }) => token),
]);

export const printIdentity = record<Identity>([
  { name: "kind", of: ({ kind }) => restName(ActorKindSchema, kind) },
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ name }) => name },
  { name: "role", of: ({ role }) => restName(RoleSchema, role) },
  { name: "organisation", of: ({ organizationId }) => organizationId ?? "all" },
  { name: "expires", of: ({ expiresAt }) => expiresAt ?? "never" },
]);

export const printInstances = list<Instance>([
  { name: "name", of: ({ name }) => name, cutTo: 20 },
  { name: "running", of: ({ running }) => running },
  { name: "last sign of life", of: ({ seenAt }) => seenAt },
  { name: "schema", of: ({ schemaVersion }) => schemaVersion },
  { name: "id", of: ({ id }) => id, optional: true },
]);

export const auditColumns: readonly Column<AuditEntry>[] = [
  { name: "at", of: ({ at }) => at },
  { name: "action", of: ({ action }) => action },
  { name: "target", of: ({ target }) => target },
  { name: "actor", of: ({ actor }) => actor?.name, cutTo: 12 },
  { name: "changed", of: changedOf, cutTo: 16 },
  { name: "address", of: ({ peer }) => peer || undefined, optional: true },
  { name: "request", of: ({ requestId }) => requestId, optional: true },
];
export const printAudit = list(auditColumns);

function changedOf({ before = {}, after = {} }: AuditEntry): string {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return names.map((name) => `${name}: ${shortJson(before[name])} → ${shortJson(after[name])}`).join(", ");
}
const shortJson = (value: unknown) => (value === undefined ? "-" : JSON.stringify(value));

const workerColumns: readonly Column<Worker>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ displayName }) => displayName, cutTo: 12 },
  { name: "email", of: ({ email }) => email ?? null, cutTo: 12 },
  { name: "known as", of: ({ links }) => links.map(linkOf).join(", ") || null, cutTo: 12 },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
];
/** Such as `crm-hub/crm-user-42`: an app's slug and the id by which it knows the worker. */
const linkOf = ({ connection, externalId }: WorkerLink) => `${connection.replace(/^custom:/, "")}/${externalId}`;
export const printWorkers = list(workerColumns);
export const printNamedWorker = record<Worker>([
  ...workerColumns,
  { name: "organisation", of: ({ organizationId }) => organizationId },
  { name: "merged", of: ({ merged }) => textsOf(merged.map(({ id }) => id)) },
]);
export const printWorker: Print<Worker> = (worker) => {
  printNamedWorker(worker);
  section("Cards", worker.cards, [
    { name: "type", of: ({ snapshotType }) => snapshotType, cutTo: 16 },
    { name: "as of", of: ({ timestamp }) => timestamp },
    { name: "metrics", of: ({ metrics }) => pairsOf(metrics ?? {}), cutTo: 20 },
    { name: "app", of: ({ appId }) => appId, optional: true },
  ]);
};
const pairsOf = (metrics: JsonObject) =>
  Object.entries(metrics)
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(" ");

/** The receipt of an erasure. */
export const printErasure = record<Erasure>([
  { name: "erasure", of: ({ id }) => id },
  { name: "organisation", of: ({ organizationId }) => organizationId },
  { name: "asked by", of: ({ by }) => by },
  { name: "begun", of: ({ startedAt }) => startedAt },
  { name: "finished", of: ({ completedAt }) => completedAt },
  { name: "events removed", of: ({ counts }) => counts?.events },
  { name: "cards removed", of: ({ counts }) => counts?.cards },
  { name: "workers removed", of: ({ counts }) => counts?.workers },
  { name: "kept decisions changed", of: ({ counts }) => counts?.idempotency },
  { name: "request records changed", of: ({ counts }) => counts?.requests },
]);

export const printAllowed = record<AllowWorkerAgainResponse>([
  { name: "erasure", of: ({ erasureId }) => erasureId },
  { name: "ids allowed again", of: ({ allowedNames }) => allowedNames },
]);

/** Outcomes of a request's Idempotency-Key. */
const claims: Readonly<Record<string, string>> = { taken: "first use", conflict: "used before, with another body" };

const outcomeOf = ({ outcome }: RecordedRequest) => restName(RequestOutcomeSchema, outcome).replaceAll("_", " ");

export const printRequest: Print<RecordedRequest> = (shown) => {
  record<RecordedRequest>([
    { name: "request", of: ({ requestId }) => requestId },
    { name: "received", of: ({ receivedAt }) => receivedAt },
    { name: "outcome", of: outcomeOf },
    { name: "Idempotency-Key", of: ({ idempotencyKey }) => claims[idempotencyKey ?? ""] },
    { name: "call", of: ({ rpc }) => rpc || undefined },
    { name: "protocol", of: ({ protocol }) => protocol || undefined },
    { name: "HTTP status", of: ({ status }) => status || undefined },
    { name: "code", of: ({ code, connectCode }) => code ?? connectCode },
    { name: "reason", of: ({ reason }) => reason },
    { name: "organisation", of: ({ organizationId }) => organizationId },
    { name: "app", of: ({ appId }) => appId },
    { name: "key", of: ({ keyId }) => keyId || undefined },
    { name: "key's hint", of: ({ keyHint }) => keyHint || undefined },
    { name: "limited by", of: ({ limitedBy }) => limitedBy },
    { name: "dry run", of: ({ dryRun }) => dryRun || undefined },
    { name: "test key", of: ({ test }) => test || undefined },
    { name: "trace", of: ({ traceId }) => traceId },
    { name: "duration", of: ({ durationMs }) => millisecondsOf(durationMs) },
    { name: "accepted", of: ({ accepted }) => accepted },
    { name: "rejected", of: ({ rejected }) => rejected },
    { name: "event ids", of: ({ eventIds }) => textsOf(eventIds) },
  ])(shown);
  section("Rejected events", shown.rejections, [
    { name: "index", of: ({ index }) => index },
    { name: "code", of: ({ code }) => code },
    { name: "message", of: ({ message }) => message, cutTo: 20 },
  ]);
  section(shown.moreReplays ? `The first ${shown.replays.length} replays` : "Replays", shown.replays, [
    { name: "received", of: ({ receivedAt }) => receivedAt },
    { name: "protocol", of: ({ protocol }) => protocol },
    { name: "HTTP status", of: ({ status }) => status },
    { name: "key's hint", of: ({ keyHint }) => keyHint },
    { name: "duration", of: ({ durationMs }) => millisecondsOf(durationMs) },
  ]);
};

export const printRequests = list<RecordedRequest>([
  { name: "request", of: ({ requestId }) => requestId },
  { name: "received", of: ({ receivedAt }) => receivedAt },
  { name: "outcome", of: outcomeOf },
  { name: "code", of: ({ code, connectCode, rejections }) => code ?? connectCode ?? rejections[0]?.code },
  { name: "accepted", of: ({ accepted }) => accepted, optional: true },
  { name: "rejected", of: ({ rejected }) => rejected, optional: true },
  { name: "app", of: ({ appId }) => appId, optional: true },
  { name: "key", of: ({ keyHint }) => keyHint, optional: true },
]);

export const printPreview: Print<PreviewAllowResponse> = (preview) => {
  record<PreviewAllowResponse>([
    { name: "would be accepted", of: ({ accepted }) => accepted },
    { name: "still refused", of: ({ refused }) => refused },
  ])(preview);
  section("By type", preview.byType, [
    { name: "type", of: ({ type }) => type, cutTo: 20 },
    { name: "accepted", of: ({ accepted }) => accepted },
    { name: "refused", of: ({ refused }) => refused },
  ]);
};
