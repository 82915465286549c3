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

const ended = Promise.withResolvers<void>();
let isEnded = false;

/** Resolves when nobody takes standard output any more. A command then ends what it began, and leaves what has no end. */
export const outputEnded: Promise<void> = ended.promise;

/** Writes whole lines to standard output, and waits until they are taken. @returns false if nobody takes them any more. */
export const sayLines = (text: string): Promise<boolean> =>
  new Promise((resolve) => process.stdout.write(escapeLines(text), (error) => resolve(!error)));

/**
 * Lets a command go on when an output fails, since it may be in the middle of a change. `ingest … | head` closes standard
 * output early; that is no failure.
 * @param failed hears any other reason why standard output cannot be written.
 */
export function watchOutputs(failed: (reason: string) => void): void {
  process.stderr.on("error", () => {});
  process.stdout.on("error", ({ code, message }: NodeJS.ErrnoException) => {
    if (!isEnded && code !== "EPIPE") failed(message);
    isEnded = true;
    ended.resolve();
  });
}

/** Writes to standard error, without secrets. Programs read only standard output. */
export function note(text: string): void {
  process.stderr.write(`${escapeLines(redactSecrets(text))}\n`);
}
