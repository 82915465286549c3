import type { Command } from "commander";
import { escapeControls, note, say, terminalWidth } from "../terminal.ts";
import { type Column, recordLines, tableOf } from "./table.ts";

export interface OutputFlags {
  readonly json?: boolean;
}

export const withJson = (command: Command): Command => command.option("--json", "print JSON with every member");

/** JSON does not escape every character that acts on a terminal. The result is still JSON, and means the same. */
export const jsonLine = (answer: object): string => escapeControls(JSON.stringify(answer));

export type Print<T> = (answer: T) => void;

/** Programs get one line of JSON, people what `print` makes of the answer. */
export function output<T extends object>(answer: T, { json }: OutputFlags, print: Print<T>): void {
  if (json === true) say(jsonLine(answer));
  else print(answer);
}

/** Prints a table. It leaves out the columns in `given`: the reader named their value on the command line. */
export const list =
  <Row>(columns: readonly Column<Row>[], given: readonly string[] = []): Print<readonly Row[]> =>
  (rows) => {
    if (rows.length === 0) return say("(none)");
    const shown = columns.filter(({ name }) => !given.includes(name));
    const { lines, leftOut } = tableOf(rows, shown, terminalWidth());
    const [heads = "", ...rest] = lines;
    say(heads, true);
    for (const line of rest) say(line);
    if (leftOut.length > 0) note(`The terminal is too narrow for: ${leftOut.join(", ")}. Use --json to see all.`);
  };

/** Prints one value a line, and no line for an undefined one. */
export const record =
  <T>(columns: readonly Column<T>[]): Print<T> =>
  (thing) => {
    const values = columns.map(({ name, of }) => [name, of(thing)] as const).filter(([, value]) => value !== undefined);
    for (const line of recordLines(values, terminalWidth())) say(line);
  };

export function section<Row>(title: string, rows: readonly Row[], columns: readonly Column<Row>[]): void {
  if (rows.length === 0) return;
  say(`\n${title}`);
  list(columns)(rows);
}
