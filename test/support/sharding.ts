import { isDeepStrictEqual } from "node:util";
import type { CommandStartedEvent, Document } from "mongodb";
import { shardedCollections, shardKey } from "../../src/store/collections.ts";

/*
 * No sharded cluster runs in these tests. So the commands that a service sends are held against what one refuses, or would
 * have to ask every shard for.
 */

const sharded = new Set(shardedCollections.map(({ name }) => name));

/** The values that a filter allows for the shard key; undefined when it may be any. */
function keysOf(filter: Document = {}): unknown[] | undefined {
  const condition = filter[shardKey];
  if (typeof condition === "string") return [condition];
  if (Array.isArray(condition?.$in)) return condition.$in;
  if (condition?.$eq !== undefined) return [condition.$eq];
  const alternatives = (filter.$or as Document[] | undefined)?.map(keysOf);
  if (alternatives?.every((keys) => keys !== undefined)) return alternatives.flat();
  return (filter.$and as Document[] | undefined)?.map(keysOf).find((keys) => keys !== undefined);
}

const isOne = (keys: unknown[] | undefined) => keys?.length === 1;

/** Why a sharded cluster would refuse to change a document found by `filter` so; undefined when it would not. */
function changeOfKey(filter: Document, change: Document | Document[]): string | undefined {
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
      if (!isDeepStrictEqual([set[shardKey]], keysOf(filter))) return `changes ${shardKey}`;
    }
  }
  return undefined;
}

function trouble(command: Document, name: string): string | undefined {
  const isEveryShard = typeof command.comment === "string" && command.comment.startsWith("every shard: ");
  const reads = (filter: Document | undefined) =>
    isEveryShard || keysOf(filter) !== undefined ? undefined : `names no ${shardKey}`;
  switch (name) {
    case "find":
      return reads(command.filter);
    case "count":
    case "distinct":
      return reads(command.query);
    case "aggregate":
      return "$changeStream" in (command.pipeline[0] ?? {}) ? undefined : reads(command.pipeline[0]?.$match);
    case "insert": {
      const stray = (command.documents as Document[]).find((one) => typeof valueOf(one, shardKey) !== "string");
      return stray === undefined ? undefined : `inserts a document without ${shardKey}`;
    }
    case "update":
      for (const { q, u, upsert, multi } of command.updates as Document[]) {
        // Only an update of many documents, which adds none, may go to more than one shard.
        const isFound = multi === true && upsert !== true ? reads(q) === undefined : isOne(keysOf(q));
        const reason = isFound ? changeOfKey(q, u) : `does not name one ${shardKey}`;
        if (reason !== undefined) return reason;
      }
      return undefined;
    case "delete": {
      const isFound = ({ q, limit }: Document) => (limit === 0 ? reads(q) === undefined : isOne(keysOf(q)));
      return (command.deletes as Document[]).every(isFound) ? undefined : `names no ${shardKey}`;
    }
    case "findAndModify":
      if (!isOne(keysOf(command.query))) return `does not name one ${shardKey}`;
      return command.update === undefined ? undefined : changeOfKey(command.query, command.update);
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

function troubleAnywhere(command: Document): string | undefined {
  if (command.startTransaction === true) return "begins a transaction, which may span shards";
  const stages: Document[] = command.pipeline ?? [];
  if (stages.some((stage) => "$out" in stage)) return "writes with $out, which no sharded collection takes";
  if (stages.some((stage) => sharded.has(stage.$lookup?.from))) return "looks up rows of a sharded collection";
  return undefined;
}

/** Says what a sharded cluster would refuse of this command; undefined when nothing. */
export function refusalOf({ command, commandName: name }: Pick<CommandStartedEvent, "command" | "commandName">) {
  const collection = command[name] as unknown;
  const isSharded = typeof collection === "string" && sharded.has(collection);
  const reason = troubleAnywhere(command) ?? (isSharded ? trouble(command, name) : undefined);
  return reason === undefined ? undefined : `${name} of ${String(collection)} ${reason}: ${shownCommand(command)}`;
}

const shownCommand = ({ lsid, $clusterTime, ...command }: Document) => JSON.stringify(command).slice(0, 600);
