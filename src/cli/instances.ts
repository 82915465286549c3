import type { Command } from "commander";
import { callPage, type ClientFlags, withClient } from "./client.ts";
import { printInstances } from "./views.ts";

export function addInstances(program: Command): void {
  withClient(program.command("instances").description("list the instances of the service")).action(
    (flags: ClientFlags) => callPage("listInstances", {}, flags, printInstances),
  );
}
