import type { Timestamp } from "@bufbuild/protobuf/wkt";
import type { Collection, Filter, FindOptions } from "mongodb";
import { z } from "zod";
import { optional, object, text, wholeNumber } from "../ingest/shapes.ts";
import { invalidMember, validate } from "../ingest/validate.ts";
import { firstId, type IdPrefix } from "../ids.ts";
import { timelineLimits } from "../limits.ts";
import type { AdminCall } from "./call.ts";
import { moment } from "./shapes.ts";

export interface PageRequest {
  readonly pageSize?: number | undefined;
  readonly pageToken?: string | undefined;
}

export interface Page<T> {
  readonly documents: readonly T[];
  readonly nextPageToken: string;
}

const pageSchema = object({
  pageSize: optional(wholeNumber(1, timelineLimits.rowsMax)),
  pageToken: optional(text(timelineLimits.tokenCharactersMax)),
});

/** The place in a token, which is sealed: another form means that an older version made it. */
const placeSchema = z.string();

/** A member with its JSON name. */
type TimeMember = readonly [name: string, value: Timestamp | undefined];

/**
 * Selects the ids that were made from the first time on and before the second one.
 * @throws Fault invalid_body for a time that is none, and for an empty range: an empty list would hide the caller's mistake.
 */
export function idsBetween(prefix: IdPrefix, [fromName, from]: TimeMember, [toName, to]: TimeMember) {
  const shape = object({ [fromName]: optional(moment), [toName]: optional(moment) });
  const times = validate(shape, { [fromName]: from, [toName]: to });
  const idAt = (time: Date | undefined) =>
    time === undefined ? undefined : firstId(prefix, new Date(Math.max(0, time.getTime())));
  const [$gte, $lt] = [idAt(times[fromName]), idAt(times[toName])];
  if ($gte !== undefined && $lt !== undefined && $gte >= $lt) {
    throw invalidMember(toName, `must be later than ${fromName}`);
  }
  const _id = { ...($gte === undefined ? {} : { $gte }), ...($lt === undefined ? {} : { $lt }) };
  return Object.keys(_id).length === 0 ? {} : { _id };
}

export interface PageOptions<T> extends FindOptions {
  /** A further filter, which changes from page to page. */
  readonly also?: Filter<T>;
  /** Filters that no index serves. A page examines at most `scannedMax` documents for them. */
  readonly looked?: readonly Filter<T>[];
}

/** Documents that one page examines for filters without an index. */
const scannedMax = 2_500;

/**
 * Reads a page, newest first: ids sort by time.
 * @param filter also bounds the page's token, which holds for no other list.
 * @throws Fault invalid_body for a bad size or token.
 */
export async function pageOf<T extends { _id: string }>(
  call: AdminCall,
  collection: Collection<T>,
  filter: Filter<T>,
  request: PageRequest,
  { also = {}, looked = [], ...options }: PageOptions<T> = {},
): Promise<Page<T>> {
  const { pageSize, pageToken } = request;
  const { pageSize: rows = timelineLimits.rowsDefault } = validate(pageSchema, {
    pageSize,
    pageToken: pageToken || undefined,
  });
  const { pages } = call.services;
  const scope = [call.rpcName, call.identity.organizationId, filter, ...looked];
  const place = pageToken ? placeSchema.safeParse(pages.open(scope, pageToken)) : undefined;
  if (place?.success === false) {
    throw invalidMember("pageToken", "must be an unchanged nextPageToken of the same call with the same filters");
  }
  const bounds = place === undefined ? {} : { _id: { $lt: place.data } };
  const indexed = { $and: [filter, bounds] } as Filter<T>;
  const read = { readConcern: "majority", ...options } as const;
  const examined = looked.length === 0 ? undefined : await lastExamined(collection, indexed, read);
  const part = examined === undefined ? {} : { _id: { $gte: examined } };
  const found = (await collection
    .find({ $and: [indexed, part, also, ...looked] } as Filter<T>, read)
    .sort({ _id: -1 })
    .limit(rows + 1)
    .toArray()) as T[];
  const documents = found.slice(0, rows);
  const next = found.length > rows ? documents.at(-1)?._id : examined;
  return { documents, nextPageToken: next === undefined ? "" : pages.seal(scope, next) };
}

/** The id of the last document that a page may examine; undefined if it may examine all. */
async function lastExamined<T extends { _id: string }>(
  collection: Collection<T>,
  indexed: Filter<T>,
  options: FindOptions,
): Promise<string | undefined> {
  const ids = collection.find(indexed, { ...options, projection: { _id: 1 } });
  const [last] = await ids
    .sort({ _id: -1 })
    .skip(scannedMax - 1)
    .limit(1)
    .toArray();
  return last?._id as string | undefined;
}
