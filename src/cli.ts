#!/usr/bin/env -S node --disable-sigusr1 --max-semi-space-size=16 --heap-growing-percent=30
import { CommanderError } from "commander";
import { exitCodeOf, exitCodes } from "./serve/exit.ts";
import { note } from "./terminal.ts";
import { createProgram } from "./cli/program.ts";

// A reader that has seen enough (`ingest … | head`) is no failure.
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  if (error.code !== "EPIPE") throw error;
  process.exit();
});

try {
  await createProgram().parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has said on standard error what is wrong; help is no error.
    process.exitCode = error.exitCode === 0 ? exitCodes.done.code : exitCodes.usage.code;
  } else {
    note(error instanceof Error ? error.message : String(error));
    process.exitCode = exitCodeOf(error);
  }
}
