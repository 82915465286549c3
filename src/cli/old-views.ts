import type { check } from "../admin/check.ts";
import type { showRequest } from "../admin/show-request.ts";
import { type Print, record, section } from "./output.ts";
import { say } from "../terminal.ts";

/** One list of columns for each kind of answer, for its table and its record. */

type Shown = Awaited<ReturnType<typeof showRequest>>;

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
