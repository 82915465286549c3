import { redactSecrets } from "./redact.ts";

/**
 * The text without what would act on a terminal: control characters, line breaks, and marks that turn the direction of
 * writing become escapes that show.
 */
export const escapeControls = (text: string): string =>
  text.replace(
    /[\p{Cc}\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/gu,
    (mark) => `\\u${mark.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );

/** Columns of the terminal. What goes to a file or a pipe has no limit, so nothing is cut for programs. */
export const terminalWidth = (): number => process.stdout.columns || Number.POSITIVE_INFINITY;

/** One line on standard output. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** One line on standard error: progress and trouble, which must not get into what a machine reads. Secrets are removed. */
export function note(line: string): void {
  process.stderr.write(`${redactSecrets(line)}\n`);
}
