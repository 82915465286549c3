#!/usr/bin/env -S node --disable-sigusr1 --max-semi-space-size=16 --heap-growing-percent=60
import { CommanderError } from "commander";
import { exitCodeOf, exitCodes } from "./serve/exit.ts";
import { note, watchOutputs } from "./terminal.ts";
import { createProgram } from "./cli/program.ts";

watchOutputs((reason) => {
  note(`Standard output cannot be written: ${reason}`);
  process.once("exit", () => (process.exitCode = exitCodes.failed.code));
});

try {
  await createProgram().parseAsync();
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander already wrote the reason to standard error. It also throws for --help, which is no error.
    process.exitCode = error.exitCode === 0 ? exitCodes.done.code : exitCodes.usage.code;
  } else {
    note(error instanceof Error ? error.message : String(error));
    process.exitCode = exitCodeOf(error);
  }
}
