import type { Command } from "commander";
import { escapeControls, say } from "../terminal.ts";

/** The flag that every command with an answer has. */
export interface OutputFlags {
  readonly json?: boolean;
}

/** Adds `--json` to a command. */
export const withJson = (command: Command): Command => command.option("--json", "print JSON, for programs");

/** An answer on standard output: one line of JSON, or for people a table of a list and name and value of one object. */
export function print(answer: object | readonly object[], { json }: OutputFlags): void {
  if (json === true) return say(jsonLine(answer));
  if (!Array.isArray(answer)) return printRows(Object.entries(answer).map(([name, value]) => [name, cell(value)]));
  const [first] = answer as readonly object[];
  if (first === undefined) return say("(none)");
  const names = Object.keys(first);
  printRows([names, ...answer.map((row: Record<string, unknown>) => names.map((name) => cell(row[name])))]);
}

/** JSON that does nothing to a terminal: what JSON leaves as it is becomes an escape that means the same. */
export const jsonLine = (answer: object): string => escapeControls(JSON.stringify(answer));

function printRows(rows: readonly (readonly string[])[]): void {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  for (const row of rows) {
    say(
      row
        .map((text, column) => text.padEnd(widths[column] ?? 0))
        .join("  ")
        .trimEnd(),
    );
  }
}

/** Names and other texts of callers must not act on the terminal, or look like further rows. */
const cell = (value: unknown): string => escapeControls(textOf(value));

function textOf(value: unknown): string {
  if (value === null || value === undefined) return "-";
  if (value instanceof Date) return value.toISOString();
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value.join(" ");
  return typeof value === "object" ? JSON.stringify(value) : String(value);
}
