import { styleText } from "node:util";
import { redactSecrets } from "./redact.ts";

/** Control characters, line breaks and bidirectional marks. */
const controls = /[\p{Cc}\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/gu;
const escaped = (mark: string) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Escapes every character that controls a terminal, in text that must stay on one line. */
export const escapeControls = (text: string): string => text.replace(controls, escaped);

/** The same, but keeps line breaks. */
export const escapeLines = (text: string): string =>
  text.replace(controls, (mark) => (mark === "\n" ? mark : escaped(mark)));

/** Columns of the terminal. A file or a pipe has no limit, so programs get everything. */
export const terminalWidth = (): number => process.stdout.columns || Number.POSITIVE_INFINITY;

/** Writes to standard output. On a terminal the text may be bold; a file or a pipe never gets that, even with FORCE_COLOR. */
export function say(text: string, isBold = false): void {
  const line = escapeLines(text);
  const styled = isBold && process.stdout.isTTY ? styleText("bold", line, { stream: process.stdout }) : line;
  process.stdout.write(`${styled}\n`);
}

/** Writes whole lines to standard output, and waits until whoever reads it keeps up. */
export async function sayLines(text: string): Promise<void> {
  if (process.stdout.write(escapeLines(text))) return;
  await new Promise((resolve) => process.stdout.once("drain", resolve));
}

/** Writes to standard error, without secrets. Programs read only standard output. */
export function note(text: string): void {
  process.stderr.write(`${escapeLines(redactSecrets(text))}\n`);
}
