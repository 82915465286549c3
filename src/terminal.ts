import { styleText } from "node:util";
import { redactSecrets } from "./redact.ts";

/** Escapes characters that control a terminal: control characters, line breaks and bidirectional marks. */
export const escapeControls = (text: string): string =>
  text.replace(
    /[\p{Cc}\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/gu,
    (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Columns of the terminal. A file or a pipe has no limit, so programs get everything. */
export const terminalWidth = (): number => process.stdout.columns || Number.POSITIVE_INFINITY;

/** Bold on a terminal. A file or a pipe gets plain text, even with FORCE_COLOR. */
export const bold = (text: string): string =>
  process.stdout.isTTY ? styleText("bold", text, { stream: process.stdout }) : text;

/** Writes one line to standard output. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Writes one line to standard error, without secrets. Programs read only standard output. */
export function note(line: string): void {
  process.stderr.write(`${redactSecrets(line)}\n`);
}
