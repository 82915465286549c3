import { isDeepStrictEqual } from "node:util";
import type { CommandStartedEvent, Document } from "mongodb";
import { events, rowsInOrder } from "../../src/store/events.ts";
import { shownCommand } from "./sharding.ts";

type Command = Pick<CommandStartedEvent, "command" | "commandName">;

/** The parts of a command that find rows. */
function findersOf({ command, commandName }: Command): readonly Document[] {
  switch (commandName) {
    case "update":
      return command.updates;
    case "delete":
      return command.deletes;
    case "aggregate":
      return "$changeStream" in (command.pipeline[0] ?? {}) ? [] : [command];
    case "find":
    case "count":
    case "distinct":
    case "findAndModify":
      return [command];
    default:
      return [];
  }
}

/** Whether the command finds rows of events and leaves the choice of the index to the server. */
export function isUnhinted(heard: Command): boolean {
  const { command, commandName } = heard;
  const stages: Document[] = Array.isArray(command.pipeline) ? command.pipeline : [];
  // These take no hint. A sort by `_id` alone has the same effect.
  if (stages.some(({ $lookup }) => $lookup?.from === events.name)) return true;
  for (const { coll, pipeline } of stages.flatMap(({ $unionWith }) => $unionWith ?? []))
    if (coll === events.name && !isDeepStrictEqual(pipeline?.[1]?.$sort, rowsInOrder)) return true;
  return command[commandName] === events.name && findersOf(heard).some(({ hint }) => hint === undefined);
}

/**
 * Gathers the commands that find rows of events without a hint. For one row, given by `_id` and `org`, the server
 * chooses the index of workers' rows, and looks among the rows of every worker.
 */
export class HintWatch {
  readonly #unhinted: string[] = [];

  readonly hear = (heard: Command): void => {
    if (isUnhinted(heard)) this.#unhinted.push(shownCommand(heard.command));
  };

  /** @throws if the server had to choose an index. */
  check(): void {
    if (this.#unhinted.length > 0) throw new Error(`no hint for rows of events:\n${this.#unhinted.join("\n")}`);
  }
}
