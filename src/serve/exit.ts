import { ConfigError } from "../config.ts";
import { Fault } from "../errors.ts";

/** Exit codes of `ingest`; `ingest --help` prints them. */
export const exitCodes = {
  done: { code: 0, meaning: "done" },
  refused: { code: 1, meaning: "the command could not do it; the message says why" },
  usage: { code: 2, meaning: "the command line or the configuration is wrong" },
  failed: { code: 3, meaning: "the database, or something else that the command needs, is missing" },
  differs: { code: 4, meaning: "`apply --dry-run` found changes to make" },
} as const;
export type Exit = keyof typeof exitCodes;

/** Why a command failed, and its exit code. */
export class CommandError extends Error {
  readonly exit: Exit;

  constructor(message: string, exit: Exit = "refused") {
    super(message);
    this.exit = exit;
  }
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof CommandError) return exitCodes[error.exit].code;
  if (error instanceof ConfigError) return exitCodes.usage.code;
  const isRefused = error instanceof Fault && error.code !== "internal_error";
  return isRefused ? exitCodes.refused.code : exitCodes.failed.code;
}
