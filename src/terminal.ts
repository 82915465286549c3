import { styleText } from "node:util";
import { redactSecrets } from "./redact.ts";

/** Escapes what acts on a terminal: control characters, line breaks, and marks that change the direction of writing. */
export const escapeControls = (text: string): string =>
  text.replace(
    /[\p{Cc}\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/gu,
    (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Columns of the terminal. What goes to a file or a pipe has no limit, so nothing is cut for programs. */
export const terminalWidth = (): number => process.stdout.columns || Number.POSITIVE_INFINITY;

/** Bold on a terminal. Programs read the plain text, even where FORCE_COLOR is set. */
export const bold = (text: string): string =>
  process.stdout.isTTY ? styleText("bold", text, { stream: process.stdout }) : text;

/** One line on standard output. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** One line on standard error, without secrets: programs read the answer on standard output. */
export function note(line: string): void {
  process.stderr.write(`${redactSecrets(line)}\n`);
}
