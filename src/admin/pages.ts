import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import type { Collection, Filter, FindOptions } from "mongodb";
import { z } from "zod";
import { optional, object, text, wholeNumber } from "../ingest/shapes.ts";
import { validate } from "../ingest/validate.ts";
import { firstId, type IdPrefix } from "../ids.ts";
import { timelineLimits } from "../limits.ts";
import { type AdminCall, invalidMember } from "./call.ts";

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
 * @throws Fault invalid_body for an empty range: an empty list would hide the caller's mistake.
 */
export function idsBetween(prefix: IdPrefix, [fromName, from]: TimeMember, [toName, to]: TimeMember) {
  const idAt = (time: Timestamp) => firstId(prefix, new Date(Math.max(0, timestampDate(time).getTime())));
  const $gte = from === undefined ? undefined : idAt(from);
  const $lt = to === undefined ? undefined : idAt(to);
  if ($gte !== undefined && $lt !== undefined && $gte >= $lt) {
    throw invalidMember(toName, `must be later than ${fromName}`);
  }
  const _id = { ...($gte === undefined ? {} : { $gte }), ...($lt === undefined ? {} : { $lt }) };
  return Object.keys(_id).length === 0 ? {} : { _id };
}

export interface PageOptions<T> extends FindOptions {
  /** A further filter, which changes from page to page. */
  readonly also?: Filter<T>;
}

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
  { also = {}, ...options }: PageOptions<T> = {},
): Promise<Page<T>> {
  const { pageSize, pageToken } = request;
  const { pageSize: rows = timelineLimits.rowsDefault } = validate(pageSchema, {
    pageSize,
    pageToken: pageToken || undefined,
  });
  const { pages } = call.services;
  const scope = [call.rpcName, call.identity.organizationId, filter];
  const place = pageToken ? placeSchema.safeParse(pages.open(scope, pageToken)) : undefined;
  if (place?.success === false) {
    throw invalidMember("pageToken", "must be an unchanged nextPageToken of the same call with the same filters");
  }
  const bounds = place === undefined ? {} : { _id: { $lt: place.data } };
  const found = (await collection
    .find({ $and: [filter, bounds, also] } as Filter<T>, { readConcern: "majority", ...options })
    .sort({ _id: -1 })
    .limit(rows + 1)
    .toArray()) as T[];
  const documents = found.slice(0, rows);
  const last = documents.at(-1);
  const nextPageToken = found.length > rows && last !== undefined ? pages.seal(scope, last._id) : "";
  return { documents, nextPageToken };
}
