import { isDeepStrictEqual } from "node:util";
import type { CommandStartedEvent, Document } from "mongodb";
import { shardedCollections } from "../../src/store/collections.ts";
import { workers } from "../../src/store/workers.ts";

/*
 * No sharded cluster runs in these tests. So the commands that a service sends are held against what one refuses, or would
 * have to ask every shard for.
 */

const sharded = new Map(shardedCollections.map(({ definition: { name }, key }) => [name, key as string]));

/** The values that a filter allows for the shard key; a range counts as two. Undefined when it may be any. */
function keysOf(filter: Document = {}, shardKey: string): unknown[] | undefined {
  const condition = filter[shardKey];
  if (typeof condition === "string" || condition instanceof Uint8Array) return [condition];
  if (Array.isArray(condition?.$in)) return condition.$in;
  if (condition?.$eq !== undefined) return [condition.$eq];
  const [low, high] = [condition?.$gte ?? condition?.$gt, condition?.$lte ?? condition?.$lt];
  if (shardKey === "_id" && low !== undefined && high !== undefined) return [low, high];
  const keysIn = (filters: Document[] | undefined) => filters?.map((one) => keysOf(one, shardKey));
  const alternatives = keysIn(filter.$or);
  if (alternatives?.every((keys) => keys !== undefined)) return alternatives.flat();
  return keysIn(filter.$and)?.find((keys) => keys !== undefined);
}

const isOne = (keys: unknown[] | undefined) => keys?.length === 1;

/** Why a sharded cluster would refuse to change a document found by `filter` so; undefined when it would not. */
function changeOfKey(filter: Document, change: Document | Document[], shardKey: string): string | undefined {
  const isPipeline = Array.isArray(change);
  const stages = isPipeline ? change : [change];
  for (const stage of stages) {
    if (
      isPipeline &&
      (String(stage.$unset).split(",").includes(shardKey) || "$replaceWith" in stage || "$project" in stage)
    )
      return `may change ${shardKey}`;
    const isReplacement = !isPipeline && !Object.keys(stage)[0]?.startsWith("$");
    const sets = isReplacement ? [stage] : Object.values(stage).filter((one) => typeof one === "object");
    for (const set of sets) {
      const isNamed = shardKey in set || Object.values(stage.$rename ?? {}).includes(shardKey);
      if (!isNamed && !isReplacement) continue;
      if (!isDeepStrictEqual([set[shardKey]], keysOf(filter, shardKey))) return `changes ${shardKey}`;
    }
  }
  return undefined;
}

function trouble(command: Document, name: string, shardKey: string): string | undefined {
  const isEveryShard = typeof command.comment === "string" && command.comment.startsWith("every shard: ");
  const reads = (filter: Document | undefined) =>
    isEveryShard || keysOf(filter, shardKey) !== undefined ? undefined : `names no ${shardKey}`;
  switch (name) {
    case "find":
      return reads(command.filter);
    case "count":
    case "distinct":
      return reads(command.query);
    case "aggregate":
      return "$changeStream" in (command.pipeline[0] ?? {}) ? undefined : reads(command.pipeline[0]?.$match);
    case "insert": {
      const stray = (command.documents as Document[]).find((one) => valueOf(one, shardKey) === undefined);
      return stray === undefined ? undefined : `inserts a document without ${shardKey}`;
    }
    case "update":
      for (const { q, u, upsert, multi } of command.updates as Document[]) {
        // Only an update of many documents, which adds none, may go to more than one shard.
        const isFound = multi === true && upsert !== true ? reads(q) === undefined : isOne(keysOf(q, shardKey));
        const reason = isFound ? changeOfKey(q, u, shardKey) : `does not name one ${shardKey}`;
        if (reason !== undefined) return reason;
      }
      return undefined;
    case "delete": {
      const isFound = ({ q, limit }: Document) => (limit === 0 ? reads(q) === undefined : isOne(keysOf(q, shardKey)));
      return (command.deletes as Document[]).every(isFound) ? undefined : `names no ${shardKey}`;
    }
    case "findAndModify":
      if (!isOne(keysOf(command.query, shardKey))) return `does not name one ${shardKey}`;
      return command.update === undefined ? undefined : changeOfKey(command.query, command.update, shardKey);
    case "createIndexes": {
      const firstOf = (key: Document) => (key instanceof Map ? key.keys().next().value : Object.keys(key)[0]);
      const loose = (command.indexes as Document[]).find((one) => one.unique && firstOf(one.key) !== shardKey);
      return loose === undefined ? undefined : `makes a unique index that does not begin with ${shardKey}`;
    }
    default:
      return undefined;
  }
}

/** Documents may be Maps: callers' members are written so. */
const valueOf = (document: Document, name: string): unknown =>
  document instanceof Map ? document.get(name) : document[name];

function troubleAnywhere(command: Document, name: string): string | undefined {
  // Administration changes workers in transactions. Callers wait for the other sharded collections.
  if (command.startTransaction === true && command[name] !== workers.name && sharded.has(command[name]))
    return "begins a transaction, which may span shards";
  const stages: Document[] = command.pipeline ?? [];
  if (stages.some((stage) => "$out" in stage)) return "writes with $out, which no sharded collection takes";
  if (stages.some((stage) => sharded.has(stage.$lookup?.from))) return "looks up rows of a sharded collection";
  for (const { coll, pipeline } of stages.flatMap(({ $unionWith }) => $unionWith ?? [])) {
    const key = sharded.get(coll);
    if (key !== undefined && keysOf(pipeline?.[0]?.$match, key) === undefined) return `adds rows without ${key}`;
  }
  return undefined;
}

/** Says what a sharded cluster would refuse of this command; undefined when nothing. */
export function refusalOf({ command, commandName: name }: Pick<CommandStartedEvent, "command" | "commandName">) {
  const collection = command[name] as unknown;
  const key = typeof collection === "string" ? sharded.get(collection) : undefined;
  const reason = troubleAnywhere(command, name) ?? (key === undefined ? undefined : trouble(command, name, key));
  return reason === undefined ? undefined : `${name} of ${String(collection)} ${reason}: ${shownCommand(command)}`;
}

export const shownCommand = ({ lsid, $clusterTime, ...command }: Document) => JSON.stringify(command).slice(0, 600);

/** Gathers what a sharded cluster would refuse of the commands that it hears. */
export class ShardWatch {
  /** The first command for each reason. */
  readonly #refusals = new Map<string, string>();

  readonly hear = (command: CommandStartedEvent): void => {
    const refusal = refusalOf(command);
    const reason = refusal?.split(": ", 1)[0] ?? "";
    if (refusal !== undefined && !this.#refusals.has(reason)) this.#refusals.set(reason, refusal);
  };

  /** @throws if such a cluster would have refused a command. */
  check(): void {
    const refusals = [...this.#refusals.values()];
    if (refusals.length > 0) throw new Error(`a sharded cluster would refuse:\n${refusals.join("\n")}`);
  }
}
