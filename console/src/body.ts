import { type RecordedRequest, RequestOutcome } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { count, safeText } from "./format.ts";
import { text } from "./text.ts";

const own = text.body;

/** The JSON of a request, which the service does not keep. */
export interface Body {
  /** The events of a batch, or the one snapshot, or whatever else the body is. */
  readonly items: readonly unknown[];
  /** Whether the items are the events of a batch. */
  readonly isBatch: boolean;
}

/** Ingest takes 1 MB; a log may have written the same body with spaces. */
const charactersMax = 10_000_000;

/**
 * Reads a body as a developer has it: `{"events": […]}`, the array alone, an event on each line, or a snapshot.
 * @throws Error that says what is allowed.
 */
export function readBody(given: string, rpc: string): Body {
  if (given.trim() === "") throw new Error(own.nothing);
  if (given.length > charactersMax) throw new Error(own.tooLong(count(given.length), count(charactersMax)));
  let value: unknown;
  try {
    value = JSON.parse(given);
  } catch (error) {
    return { items: linesOfEvents(given, error as Error), isBatch: true };
  }
  return bodyOf(value, rpc);
}

export function bodyOf(value: unknown, rpc: string): Body {
  if (rpc !== "Snapshots") {
    if (Array.isArray(value)) return { items: value, isBatch: true };
    const { events } = (value ?? {}) as { events?: unknown };
    if (Array.isArray(events)) return { items: events, isBatch: true };
  }
  if (typeof value !== "object" || value === null) throw new Error(own.noObject);
  return { items: [value], isBatch: false };
}

/** @param why the whole is not JSON. */
function linesOfEvents(given: string, why: Error): unknown[] {
  const lines = given.split("\n").filter((line) => line.trim() !== "");
  return lines.map((line, i) => {
    try {
      return JSON.parse(line);
    } catch (error) {
      // If no line is an event of its own, the text is one JSON with a mistake.
      throw i === 0 ? new Error(own.noJson(safeText(why.message))) : lineError(i, error as Error);
    }
  });
}

const lineError = (i: number, { message }: Error) => new Error(own.noJsonLine(i + 1, safeText(message)));

/** Why an event was refused, and where in its JSON. */
export interface Refusal {
  /** The event's place in the batch; undefined if the message is about the body. */
  readonly index: number | undefined;
  /** Within the event or the body, such as `actor.email`; empty for the whole. */
  readonly path: string;
  readonly code: string;
  readonly message: string;
  /** Whether the message began with the path; else the code tells the member. */
  readonly isNamed: boolean;
  /** Within the request, such as `events[2].actor.email`. */
  readonly place: string;
}

/** The member at fault, for the codes whose messages do not name it. */
const paths: Readonly<Record<string, string>> = {
  forbidden_event_type: "eventType",
  missing_actor: "actor",
  worker_not_found: "actor",
};

type Refused = Pick<RecordedRequest, "code" | "reason" | "rejections" | "rpc">;

/** The refusals of a record: those of single events, or what the message of the request says about its parts. */
export function refusalsOf({ code = "", reason = "", rejections, rpc }: Refused): Refusal[] {
  const pathOf = (of: string) => (rpc === "Snapshots" && of === "forbidden_event_type" ? "snapshotType" : paths[of]);
  if (rejections.length > 0) {
    return rejections.map(({ index, code, message }) => ({
      ...{ index, code, message, path: pathOf(code) ?? "" },
      ...{ isNamed: false, place: own.event(index) },
    }));
  }
  const path = pathOf(code);
  if (path !== undefined) return [{ index: undefined, path, code, message: reason, isNamed: false, place: path }];
  if (code !== "invalid_body") return [];
  // `path: message; path: message`. A message may have a semicolon, too, but no path after it.
  return reason.split(/; (?=(?:events\[\d+\]|metadata|metrics|[A-Za-z][^\s:]*: ))/).flatMap((part): Refusal[] => {
    const found = /^((?:events\[(\d+)\]\.?)?(.*?)): (.*)$/s.exec(part);
    if (found === null) return [];
    const [, place = "", digits, path = "", message = ""] = found;
    const index = digits === undefined ? undefined : Number(digits);
    return [{ index, path: place === "body" ? "" : path, code, message, isNamed: true, place }];
  });
}

/** What became of an event. */
export type Fate =
  | { readonly kind: "refused"; readonly refusals: readonly Refusal[] }
  | { readonly kind: "accepted"; readonly rowId: string | undefined }
  /** The request failed for something else, so nothing of it was stored. */
  | { readonly kind: "unstored" }
  /** It was refused after the last refusal that the record keeps. */
  | { readonly kind: "uncertain" };

/** What became of each event of a body. */
export function fatesOf(record: RecordedRequest, { items, isBatch }: Body): Fate[] {
  const refusals = new Map<number | undefined, Refusal[]>();
  for (const one of refusalsOf(record)) {
    const index = isBatch ? one.index : 0;
    refusals.set(index, [...(refusals.get(index) ?? []), one]);
  }
  const rows = new Map(record.eventIds.map((id) => [placeOf(id) - placeOf(record.requestId) - 1, id]));
  const last = record.rejections.at(-1)?.index ?? -1;
  const isWhole = record.rejected <= record.rejections.length;
  return items.map((_, i): Fate => {
    const own = refusals.get(i);
    if (own !== undefined) return { kind: "refused", refusals: own };
    const rowId = rows.get(i);
    if (rowId !== undefined) return { kind: "accepted", rowId };
    if (record.code !== undefined || record.outcome === RequestOutcome.ABANDONED) return { kind: "unstored" };
    return isWhole || i < last ? { kind: "accepted", rowId } : { kind: "uncertain" };
  });
}

/** The number of events that the request had, if its record tells. */
export function eventsOf({ accepted, rejected, rejections, code }: RecordedRequest): number | undefined {
  return code === undefined || rejections.length > 0 ? accepted + rejected : undefined;
}

/** Whether the record speaks of events that the body does not have, or of fewer. */
export function isOther(record: RecordedRequest, { items, isBatch }: Body): boolean {
  const events = eventsOf(record);
  if (events !== undefined) return events !== items.length;
  return isBatch && refusalsOf(record).some(({ index = 0 }) => index >= items.length);
}

const digits = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** The end of an id as a number. A row's id is its request's plus 1 and the event's place. */
function placeOf(id: string): number {
  let place = 0;
  for (const digit of id.slice(-8)) place = place * digits.length + digits.indexOf(digit);
  return place;
}

const keptMax = 20;
const kept = new Map<string, Body>();

/** The last bodies that this page sent, or that were pasted: by the request's id, and in its memory alone. */
export const bodies = {
  of: (requestId: string): Body | undefined => kept.get(requestId),
  keep(requestId: string, body: Body): void {
    kept.delete(requestId);
    kept.set(requestId, body);
    const [oldest] = kept.keys();
    if (kept.size > keptMax && oldest !== undefined) kept.delete(oldest);
  },
  forget: (requestId: string): boolean => kept.delete(requestId),
  forgetAll: (): void => kept.clear(),
};
