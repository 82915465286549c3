import { fromBinary, toBinary } from "@bufbuild/protobuf";
import type { Db, Filter } from "mongodb";
import {
  EventsRequestSchema,
  EventsResponseSchema,
  SnapshotsRequestSchema,
  SnapshotsResponseSchema,
} from "../../src/gen/ingest/v1/ingest_pb.js";
import { eventIds } from "../../src/ids.ts";
import { limits } from "../../src/limits.ts";
import { cardCollection } from "../../src/store/snapshots.ts";
import { type EventDocument, type EventRow, eventCollection, rowOf } from "../../src/store/events.ts";
import { eventsMessage, snapshotMessage } from "../support/messages.ts";
import { callGrpc, postRest, type Reply } from "./wire.ts";

export type Way = "rest" | "grpc";

/** A request that a client sends until it gets an answer. The metadata of each event has its tag and index. */
export interface Asked {
  readonly tag: string;
  readonly rpc: "events" | "snapshots";
  readonly key: string;
  /** Without a key the request is sent once. */
  readonly idempotencyKey: string | undefined;
  /** Whether each of its events has an id. Then it is sent until it is answered, with and without its Idempotency-Key. */
  readonly isNamed?: boolean;
  /** The reference's JSON. */
  readonly body: any;
}

/** The service's answers to one request, over all its tries. */
interface Entry {
  readonly asked: Asked;
  requestId: string | undefined;
  /** Indices of the accepted events. */
  accepted: readonly number[];
  refused: boolean;
  answeredAtMs: number;
  /** Answers that were no replays: one, or none if it was lost. With simultaneous duplicates it may come second. */
  first: number;
  /** What each answer accepts that only the events' ids connect with the first one. */
  readonly repeats: string[];
  readonly bodies: Map<Way, Buffer>;
}

export const send = (url: string, way: Way, { rpc, key, idempotencyKey, body }: Asked): Promise<Reply> => {
  const headers = {
    authorization: `Bearer ${key}`,
    ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
  };
  if (way === "rest") return postRest(url, `/api/v1/ingest/${rpc}`, headers, JSON.stringify(body));
  return rpc === "events"
    ? callGrpc(url, "/ingest.v1.Ingest/Events", headers, toBinary(EventsRequestSchema, eventsMessage(body)))
    : callGrpc(url, "/ingest.v1.Ingest/Snapshots", headers, toBinary(SnapshotsRequestSchema, snapshotMessage(body)));
};

/** Two minutes less than the service remembers an Idempotency-Key. */
const replayedWithinMs = limits.idempotencyWindowSeconds * 1000 - 120_000;

/** Records every request and every answer, and compares them with the database. */
export class Ledger {
  readonly #entries = new Map<string, Entry>();
  /** Violations, each a line of text. */
  readonly problems: string[] = [];
  readonly counts = {
    answered: 0,
    /** Requests whose events have ids, with and without an Idempotency-Key. */
    namedWithKey: 0,
    namedWithoutKey: 0,
    refused: 0,
    replays: 0,
    acknowledgedEvents: 0,
  };

  /** Call this before the request is sent for the first time. */
  ask(asked: Asked): void {
    this.#entries.set(asked.tag, {
      asked,
      ...{
        requestId: undefined,
        accepted: [],
        refused: false,
        answeredAtMs: 0,
        first: 0,
        repeats: [],
        bodies: new Map(),
      },
    });
  }

  /** Records an answer or a refusal. Events with ids may also be sent without the request's Idempotency-Key. */
  answered(sent: Asked, way: Way, reply: Exclude<Reply, { kind: "failure" }>): void {
    const { tag } = sent;
    const entry = this.#entries.get(tag) as Entry;
    if (reply.kind === "refusal") {
      if (entry.requestId !== undefined) this.problems.push(`${tag}: refused (${reply.status}) after an answer`);
      if (!entry.refused) this.counts.refused++;
      entry.refused = true;
      return;
    }
    if (entry.refused) this.problems.push(`${tag}: answered after a refusal`);
    const { requestId, accepted, isConflict } = contentOf(entry.asked, way, reply.body);
    if (isConflict) this.problems.push(`${tag}: other content under an event id that was sent with this content only`);
    const isKeyless = sent.idempotencyKey !== entry.asked.idempotencyKey;
    if (isRepeated(sent) && (isKeyless || entry.requestId !== undefined)) {
      entry.repeats.push(String(accepted));
      return;
    }
    if (requestId !== reply.requestId) this.problems.push(`${tag}: X-Request-Id ${reply.requestId}, body ${requestId}`);
    if (!reply.replayed && entry.first++ > 0) this.problems.push(`${tag}: two answers that are not replays`);
    const before = entry.bodies.get(way);
    if (before !== undefined && !before.equals(reply.body)) this.problems.push(`${tag}: a replay differs over ${way}`);
    entry.bodies.set(way, reply.body);
    if (entry.requestId === undefined) {
      Object.assign(entry, { requestId, accepted, answeredAtMs: Date.now() });
      this.counts.answered++;
      if (entry.asked.isNamed === true) this.counts[isRepeated(sent) ? "namedWithoutKey" : "namedWithKey"]++;
      this.counts.acknowledgedEvents += accepted.length;
      return;
    }
    this.counts.replays++;
    if (entry.requestId !== requestId || String(entry.accepted) !== String(accepted)) {
      this.problems.push(`${tag}: a replay over ${way} says other than the first answer`);
    }
  }

  /** Requests with an Idempotency-Key that the service still remembers, the newest first. */
  replayable(): Asked[] {
    const answered = [...this.#entries.values()].filter((entry) => this.#isRemembered(entry));
    return answered.map(({ asked }) => asked).reverse();
  }

  /** Check this right before a replay: a machine may hold up a run for minutes. */
  isReplayable({ tag }: Asked): boolean {
    return this.#isRemembered(this.#entries.get(tag) as Entry);
  }

  #isRemembered({ asked, requestId, answeredAtMs }: Entry): boolean {
    const isRecent = Date.now() - answeredAtMs < replayedWithinMs;
    return asked.idempotencyKey !== undefined && requestId !== undefined && isRecent;
  }

  /** Compares the whole database, or the part that the filter selects, with the requests and answers. */
  async audit(
    db: Db,
    filter: Filter<EventDocument> = {},
  ): Promise<{ rows: number; lost: number; doubled: number; unasked: number; wrongCards: number }> {
    const seen = new Map<string, number>();
    const newest = new Map<string, EventRow>();
    const unanswered = new Set<string>();
    const [workers, links] = [new Map<string, string>(), new Set<string>()];
    const result = { rows: 0, lost: 0, doubled: 0, unasked: 0, wrongCards: 0 };
    for await (const row of eventCollection(db).find(filter).map(rowOf)) {
      result.rows++;
      const { tag, index } = row.metadata as { tag: string; index: number };
      const entry = this.#entries.get(tag);
      const count = (seen.get(`${tag}/${index}`) ?? 0) + 1;
      seen.set(`${tag}/${index}`, count);
      if (entry === undefined || entry.refused || !this.#fits(entry, row, index)) {
        result.unasked++;
        this.problems.push(`${row.id}: a row that no request asked for (${tag}/${index})`);
      } else if (count > 1) {
        result.doubled++;
        this.problems.push(`${row.id}: stored ${count} times (${tag}/${index})`);
      }
      // A request without an answer may have its row but not its card.
      if (entry?.requestId === undefined) unanswered.add(row.requestId);
      else if (row.kind === "snapshot") {
        const card = `${row.workerId}/${row.appId}/${row.type}`;
        const known = newest.get(card);
        if (known === undefined || isLater(row, known)) newest.set(card, row);
      }
      const actor = (row.metadata as { actor: string }).actor;
      workers.set(actor, row.workerId);
      links.add(`${actor} ${row.workerId}`);
    }
    for (const { asked, accepted, repeats } of this.#entries.values()) {
      if (repeats.some((repeat) => repeat !== String(accepted)))
        this.problems.push(`${asked.tag}: sent again, other events are accepted`);
      for (const index of accepted) {
        if (seen.has(`${asked.tag}/${index}`)) continue;
        result.lost++;
        this.problems.push(`${asked.tag}/${index}: acknowledged and not stored`);
      }
    }
    for (const [_id, row] of newest) {
      const card = await cardCollection(db).findOne({ _id });
      if (card !== null && isLater(card, row) && unanswered.has(card.requestId)) continue;
      if (card?.requestId === row.requestId && JSON.stringify(card.metrics) === JSON.stringify(row.metrics)) continue;
      result.wrongCards++;
      this.problems.push(`${_id}: the card shows ${card?.requestId}, the newest snapshot is ${row.requestId}`);
    }
    if (links.size !== workers.size) this.problems.push(`${links.size} workers for ${workers.size} actors`);
    return result;
  }

  /** Whether the row is what the request's event at the index must look like. */
  #fits({ asked, requestId, accepted }: Entry, row: EventRow, index: number): boolean {
    const sent = asked.rpc === "events" ? asked.body.events[index] : asked.body;
    if (sent === undefined || row.type !== (sent.eventType ?? sent.snapshotType)) return false;
    const at = sent.timestamp === undefined ? row.receivedAt.getTime() : Date.parse(sent.timestamp);
    if (row.timestamp.getTime() !== at || JSON.stringify(row.metadata) !== JSON.stringify(sent.metadata)) return false;
    // Any part of a request that was sent once without an answer may be stored.
    if (requestId === undefined) return asked.idempotencyKey === undefined;
    // Any of its tries may have stored the event.
    if (asked.isNamed === true) return accepted.includes(index);
    return row.requestId === requestId && accepted.includes(index) && row.id === eventIds(requestId)(index);
  }
}

/** Whether it is sent again as another request, so that only the events' ids keep it from being stored twice. */
export const isRepeated = ({ isNamed, idempotencyKey }: Asked): boolean =>
  isNamed === true && idempotencyKey === undefined;

type Dated = Pick<EventRow, "timestamp" | "requestId">;

function isLater(a: Dated, b: Dated): boolean {
  const ms = a.timestamp.getTime() - b.timestamp.getTime();
  return ms > 0 || (ms === 0 && a.requestId > b.requestId);
}

interface Content {
  readonly requestId: string;
  readonly accepted: readonly number[];
  readonly isConflict: boolean;
}

function contentOf({ rpc, body }: Asked, way: Way, bytes: Buffer): Content {
  if (rpc === "snapshots") {
    const { requestId } =
      way === "rest" ? JSON.parse(bytes.toString()) : fromBinary(SnapshotsResponseSchema, new Uint8Array(bytes));
    return { requestId, accepted: [0], isConflict: false };
  }
  const answer =
    way === "rest" ? JSON.parse(bytes.toString()) : fromBinary(EventsResponseSchema, new Uint8Array(bytes));
  const rejected = new Set<number>(answer.results.rejected.map(({ index }: { index: number }) => index));
  const accepted = body.events.map((_: unknown, i: number) => i).filter((i: number) => !rejected.has(i));
  if (accepted.length !== answer.accepted) throw new Error(`accepted says ${answer.accepted} of ${accepted.length}`);
  const isConflict = answer.results.accepted.some(({ conflict }: { conflict?: boolean }) => conflict);
  return { requestId: answer.requestId, accepted, isConflict };
}
