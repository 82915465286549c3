import type { check } from "../admin/check.ts";
import { type Print, record, section } from "./output.ts";
import { say } from "../terminal.ts";

/** Views of the commands that work on the database itself. */

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
