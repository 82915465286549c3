import type { check } from "../admin/check.ts";
import type { Admin, Page } from "../admin/admin.ts";
import type { WorkerChanges } from "../admin/worker-changes.ts";
import type { showRequest } from "../admin/show-request.ts";
import type { UsageGroup } from "../store/usage-days.ts";
import type { Column } from "./table.ts";
import { list, type Print, record, section } from "./output.ts";
import { say } from "../terminal.ts";

/** One list of columns for each kind of answer, for its table and its record. */

type Answer<Name extends keyof Admin> = Awaited<ReturnType<Admin[Name]>>;
type RowOf<Name extends keyof Admin> = Answer<Name> extends Page<infer Row> ? Row : never;
type Shown = Awaited<ReturnType<typeof showRequest>>;

export const printUsage: Print<Answer<"usageOf">> = list([
  { name: "month", of: ({ month }) => month },
  { name: "events", of: ({ events }) => events },
  { name: "quota", of: ({ quotaEventsPerMonth }) => quotaEventsPerMonth },
]);

export const printDailyUsage = (by: UsageGroup): Print<Answer<"dailyUsageOf">> =>
  list<Answer<"dailyUsageOf">[number]>([
    { name: by, of: (row) => row[by === "app" ? "appId" : by] || "(others)", cutTo: 20 },
    { name: "accepted", of: ({ accepted }) => accepted },
    { name: "rejected", of: ({ rejected }) => codesOf(rejected), cutTo: 20 },
    { name: "replayed", of: ({ replayed }) => replayed },
    { name: "duplicates", of: ({ duplicates }) => duplicates },
  ]);
const codesOf = (rejected: Answer<"dailyUsageOf">[number]["rejected"]) =>
  Object.entries(rejected)
    .map(([code, count]) => `${code}=${count}`)
    .join(" ") || 0;

export const printRecount: Print<Answer<"recount">> = record([
  { name: "month", of: ({ month }) => month },
  { name: "events before", of: ({ before }) => before },
  { name: "events now", of: ({ after }) => after },
  { name: "counts corrected", of: ({ corrected }) => corrected },
]);

export const printNewKey: Print<Answer<"createKey"> | Answer<"rotateKey">> = record([
  { name: "id", of: ({ id }) => id },
  { name: "key", of: ({ key }) => `${key}  (it is not shown again)` },
  { name: "app", of: ({ appId }) => appId },
  { name: "scope", of: ({ scope }) => scope },
  { name: "expires", of: ({ expiresAt }) => expiresAt ?? "never" },
  { name: "replaces", of: (key) => ("replaces" in key ? key.replaces.id : undefined) },
  { name: "which expires", of: (key) => ("replaces" in key ? key.replaces.expiresAt : undefined) },
]);

type Key = Answer<"revokeKey">;

function statusOf({ status, expiresInSeconds }: Key): string {
  const isEnding = expiresInSeconds !== null && expiresInSeconds > 0;
  if (status === "rotating" && isEnding) return `rotating, ${durationOf(expiresInSeconds)} left`;
  return status === "active" && isEnding ? `expires in ${durationOf(expiresInSeconds)}` : status;
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
  { name: "scope", of: ({ scope }) => scope },
  { name: "status", of: statusOf },
];
const keyTimes: readonly Column<Key>[] = [
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
  { name: "expires", of: ({ expiresAt }) => expiresAt ?? "never", optional: true },
];
export const printKey: Print<Key> = record([
  ...keyColumns,
  { name: "app", of: ({ appId }) => appId },
  ...keyTimes,
  { name: "revoked", of: ({ revokedAt }) => revokedAt ?? undefined },
]);
export const printKeys = list<RowOf<"listKeys">>([
  ...keyColumns,
  { name: "last used", of: ({ lastUsedAt }) => lastUsedAt ?? "never", optional: true },
  ...keyTimes,
]);

const workerColumns: readonly Column<RowOf<"listWorkers">>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ displayName }) => displayName, cutTo: 12 },
  { name: "email", of: ({ email }) => email, cutTo: 12 },
  { name: "known as", of: ({ links }) => links.map(linkOf).join(", ") || null, cutTo: 12 },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
];
/** Such as `crm-hub/crm-user-42`: an app's slug and the id by which it knows the worker. */
const linkOf = ({ connection, externalId }: RowOf<"listWorkers">["links"][number]) =>
  `${connection.replace(/^custom:/, "")}/${externalId}`;
export const printWorkers = list(workerColumns);
export const printNamedWorker: Print<Answer<"renameWorker">> = record([
  ...workerColumns,
  { name: "organisation", of: ({ organizationId }) => organizationId },
]);
export const printWorker: Print<Answer<"showWorker">> = (worker) => {
  printNamedWorker(worker);
  section("Cards", worker.cards, [
    { name: "type", of: ({ snapshotType }) => snapshotType, cutTo: 16 },
    { name: "as of", of: ({ timestamp }) => timestamp },
    { name: "metrics", of: ({ metrics }) => pairsOf(metrics), cutTo: 20 },
    { name: "app", of: ({ appId }) => appId, optional: true },
  ]);
};

export const printDroppedCard: Print<Answer<"dropCard">> = record([
  { name: "worker", of: ({ workerId }) => workerId },
  { name: "dropped card", of: ({ snapshotType }) => snapshotType },
  { name: "as of", of: ({ timestamp }) => timestamp },
  { name: "app", of: ({ appId }) => appId },
]);

type Changed<Name extends "erase" | "merge" | "allowAgain"> = Awaited<ReturnType<WorkerChanges[Name]>>;

export const printMerge: Print<Changed<"merge">> = record([
  { name: "worker", of: ({ workerId }) => workerId },
  { name: "merged", of: ({ merged }) => merged },
  { name: "events moved", of: ({ events }) => events },
  { name: "cards moved", of: ({ cards }) => cards },
]);

/** The receipt of an erasure. */
export const printErasure: Print<Changed<"erase">> = record([
  { name: "erasure", of: ({ id }) => id },
  { name: "organisation", of: ({ organizationId }) => organizationId },
  { name: "asked by", of: ({ by }) => by },
  { name: "begun", of: ({ startedAt }) => startedAt },
  { name: "finished", of: ({ completedAt }) => completedAt },
  { name: "events removed", of: ({ counts }) => counts.events },
  { name: "cards removed", of: ({ counts }) => counts.cards },
  { name: "workers removed", of: ({ counts }) => counts.workers },
  { name: "kept decisions changed", of: ({ counts }) => counts.idempotency },
  { name: "request records changed", of: ({ counts }) => counts.requests },
]);

export const printAllowed: Print<Changed<"allowAgain">> = record([
  { name: "erasure", of: ({ erasure }) => erasure },
  { name: "ids allowed again", of: ({ allowedNames }) => allowedNames },
]);

/** Each thing on two lines: texts are long, and an operator works them off. */
export const printCheck: Print<Awaited<ReturnType<typeof check>>> = ({ findings, ...checked }) => {
  record<typeof checked>([
    { name: "database", of: ({ database }) => database },
    { name: "last instance at", of: ({ lastInstanceAt }) => lastInstanceAt ?? "unknown" },
  ])(checked);
  for (const level of ["attention", "note"] as const) {
    const found = findings.filter((one) => one.level === level);
    if (found.length > 0) say(`\n${{ attention: "Needs attention", note: "Notes" }[level]}`, true);
    for (const { about, text, remedy } of found) {
      say(`- ${about}: ${text}`);
      if (remedy !== null) say(`  ${remedy}`);
    }
  }
};

export const printState: Print<{ file: string; takenAt: Date; keys: number }> = record([
  { name: "file", of: ({ file }) => file },
  { name: "taken", of: ({ takenAt }) => takenAt },
  { name: "keys", of: ({ keys }) => keys },
]);

const pairsOf = (metrics: Record<string, unknown>) =>
  Object.entries(metrics)
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`)
    .join(" ");

export const printMigration: Print<{ database: string; schemaVersion: number; changes: readonly string[] }> = (
  done,
) => {
  record<typeof done>([
    { name: "database", of: ({ database }) => database },
    { name: "schema version", of: ({ schemaVersion }) => schemaVersion },
    { name: "changes", of: ({ changes }) => (changes.length === 0 ? "none: it is up to date" : changes.length) },
  ])(done);
  section("Changes", done.changes, [{ name: "index", of: (change) => change, cutTo: 20 }]);
};

/** Outcomes of a request's Idempotency-Key. */
const claims: Readonly<Record<string, string>> = { taken: "first use", conflict: "used before, with another body" };

/** An accepted request has no record, so some members are missing. */
type Recorded = Extract<Shown, { protocol: unknown }>;

export const printRequest: Print<Shown> = (shown) => {
  record<{ [Name in keyof Recorded]?: Recorded[Name] | undefined }>([
    { name: "request", of: ({ requestId }) => requestId },
    { name: "received", of: ({ receivedAt }) => receivedAt },
    { name: "outcome", of: ({ outcome }) => outcome },
    { name: "Idempotency-Key", of: ({ idempotencyKey }) => claims[idempotencyKey ?? ""] },
    { name: "call", of: ({ rpc }) => rpc || undefined },
    { name: "protocol", of: ({ protocol }) => protocol },
    { name: "HTTP status", of: ({ status }) => status || undefined },
    { name: "code", of: ({ code, connectCode }) => code ?? connectCode },
    { name: "reason", of: ({ reason }) => reason },
    { name: "organisation", of: ({ organizationId }) => organizationId },
    { name: "app", of: ({ appId }) => appId },
    { name: "key", of: ({ keyId }) => keyId },
    { name: "key's hint", of: ({ keyHint }) => keyHint },
    { name: "limited by", of: ({ limitedBy }) => limitedBy },
    { name: "dry run", of: ({ dryRun }) => dryRun },
    { name: "test key", of: ({ test }) => test },
    { name: "trace", of: ({ traceId }) => traceId },
    { name: "duration", of: ({ durationMs }) => (durationMs === undefined ? undefined : `${durationMs} ms`) },
    { name: "accepted", of: ({ accepted }) => accepted },
    { name: "rejected", of: ({ rejected }) => rejected },
    { name: "event ids", of: ({ eventIds }) => (eventIds?.length === 0 ? undefined : eventIds) },
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
    { name: "duration", of: ({ durationMs }) => `${durationMs} ms` },
  ]);
};
