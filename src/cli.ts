#!/usr/bin/env node
import { CommanderError } from "commander";
import { AdminError } from "./admin/admin.ts";
import { exitCodes } from "./cli/exit.ts";
import { note } from "./cli/output.ts";
import { createProgram } from "./cli/program.ts";
import { ConfigError } from "./config.ts";
import { redactSecrets } from "./redact.ts";

/** Commander has said on standard error what is wrong with a command line already. */
function exitCodeOf(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? exitCodes.done.code : exitCodes.usage.code;
  note(redactSecrets(error instanceof Error ? error.message : String(error)));
  if (error instanceof ConfigError) return exitCodes.usage.code;
  return error instanceof AdminError ? exitCodes.refused.code : exitCodes.failed.code;
}

try {
  await createProgram().parseAsync();
} catch (error) {
  process.exitCode = exitCodeOf(error);
}
