import { type ChangeStream, type ChangeStreamOptions, MongoServerError, Timestamp } from "mongodb";
import { faultOfDatabase } from "./database.ts";

/**
 * A place in the order of storage. `data` is the database's token, which sorts as text. A stream that begins at `time`
 * misses nothing after the place. Without `time` the place is not a row's, and a stream begins after `data`.
 */
export interface FeedPosition {
  readonly data: string;
  readonly time?: { readonly t: number; readonly i: number };
}

/** The database no longer remembers the position. */
export class PositionLost extends Error {}

/** Server codes: the oplog no longer has the place to begin at. */
const lostCodes = new Set<unknown>([136, 280, 286]);

/** What a stream fails with: PositionLost, or a fault. */
export function feedError(thrown: unknown): Error {
  if (thrown instanceof MongoServerError && lostCodes.has(thrown.code)) {
    return new PositionLost("the database does not remember this position", { cause: thrown });
  }
  const fault = faultOfDatabase(thrown);
  return fault instanceof Error ? fault : new Error(String(fault));
}

/** A change's token begins with its time, so that "now" can be compared with tokens. */
export const tokenStart = (time: NonNullable<FeedPosition["time"]>): string =>
  `82${[time.t, time.i].map((part) => part.toString(16).padStart(8, "0")).join("")}`.toUpperCase();

/** A change, with the members that make its position. */
export interface Placed {
  readonly _id: { readonly _data: string };
  readonly clusterTime: Timestamp;
}

/** @throws Error if the database's tokens have another form, because positions could then not be ordered. */
export function positionOf({ _id: { _data }, clusterTime: { t, i } }: Placed): FeedPosition {
  const time = { t, i };
  if (!_data.startsWith(tokenStart(time))) throw new Error(`the resume token '${_data}' does not begin with its time`);
  return { data: _data, time };
}

/** The position of a stream that has no more rows yet. */
export const resumePosition = (stream: ChangeStream): FeedPosition => ({
  data: (stream.resumeToken as Placed["_id"])._data,
});

/**
 * Begins a stream at a position. With a `time` it repeats changes from before the position.
 * A row's own token fails if the new stream's filter leaves that row out (SERVER-71565).
 */
export const beginAt = ({ data, time }: FeedPosition): ChangeStreamOptions =>
  time === undefined ? { resumeAfter: { _data: data } } : { startAtOperationTime: new Timestamp(time) };
