import { redactSecrets } from "./redact.ts";

/** One line on standard output. */
export function say(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** One line on standard error: progress and trouble, which must not get into what a machine reads. Secrets are removed. */
export function note(line: string): void {
  process.stderr.write(`${redactSecrets(line)}\n`);
}
