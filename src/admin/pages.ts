import type { Collection, Filter, FindOptions } from "mongodb";
import { z } from "zod";
import { optional, object, text, wholeNumber } from "../ingest/shapes.ts";
import { validate } from "../ingest/validate.ts";
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
  options: FindOptions = {},
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
    .find({ $and: [filter, bounds] } as Filter<T>, { readConcern: "majority", ...options })
    .sort({ _id: -1 })
    .limit(rows + 1)
    .toArray()) as T[];
  const documents = found.slice(0, rows);
  const last = documents.at(-1);
  const nextPageToken = found.length > rows && last !== undefined ? pages.seal(scope, last._id) : "";
  return { documents, nextPageToken };
}
