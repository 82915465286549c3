import { z } from "zod";
import { jsonOf } from "./json.ts";
import type { SourceKind } from "./kinds.ts";

export interface Refusal {
  readonly code: string;
  readonly message: string;
}

/** From Ingest, or from anything in between. */
export interface Reply {
  readonly status: number;
  readonly text: string;
  readonly retryAfter: string | null;
  readonly location: string | null;
  /** Whether it is the answer to an earlier request with the same Idempotency-Key. */
  readonly isReplay?: boolean;
}

/** Of a line. A line is `known` if it was stored before, and in `conflict` if other content is stored under its id. */
export type LineOutcome = "stored" | "known" | "conflict" | Refusal;

/** One outcome for each line, in order; or a failure. */
export type Answer = { readonly kind: "lines"; readonly outcomes: readonly LineOutcome[] } | Failure;

export type Failure =
  /** Nothing was stored. */
  | { readonly kind: "refused"; readonly refusal: Refusal }
  /** No valid answer: send the same request again. */
  | {
      readonly kind: "none";
      readonly trouble: string;
      readonly retryAfterSeconds?: number | undefined;
    }
  /** No try with this command line can succeed. Nothing was stored. */
  | { readonly kind: "mistake"; readonly message: string };

const errorShape = z.object({ error: z.object({ code: z.string(), message: z.string() }) });

const eventsShape = z.object({
  accepted: z.int(),
  rejected: z.int(),
  results: z.object({
    accepted: z.array(z.object({ duplicate: z.boolean().optional(), conflict: z.boolean().optional() })),
    rejected: z.array(z.object({ index: z.int().min(0), code: z.string(), message: z.string() })),
  }),
});

const snapshotShape = z.object({ requestId: z.string(), ok: z.literal(true), snapshotType: z.string() });

/** Statuses below 500 that may pass without a change of the request. */
const laterStatuses: ReadonlySet<number> = new Set([408, 421, 425, 429]);

/** Never throws: anything between us and Ingest may have replied. */
export function answerOf(reply: Reply, { name }: SourceKind, count: number): Answer {
  const { status, text, isReplay } = reply;
  const body = jsonOf(text);
  const outcomes =
    name === "event" ? outcomesOfEvents(status, body, count) : outcomesOfSnapshot(status, body, isReplay);
  return outcomes === undefined ? failureOf(reply) : { kind: "lines", outcomes };
}

/** What a reply means that is not the wanted answer. Never throws. */
export function failureOf({ status, text, retryAfter, location }: Reply): Failure {
  const error = errorShape.safeParse(jsonOf(text)).data?.error;
  if (status >= 500 || laterStatuses.has(status)) {
    const trouble = error === undefined ? `status ${status}` : printable(error.message);
    const retryAfterSeconds = retryAfterOf(retryAfter);
    return { kind: "none", trouble, retryAfterSeconds };
  }
  if (status >= 300 && status < 400) {
    const to = location === null ? "" : ` to ${printable(location)}`;
    return { kind: "mistake", message: `The service answers with a redirect${to}; --url must name where it leads.` };
  }
  if (status < 300) return { kind: "none", trouble: `status ${status} with an answer that is not Ingest's` };
  if (error === undefined) {
    return { kind: "mistake", message: `Status ${status}: the answer is not Ingest's. Check --url.` };
  }
  return { kind: "refused", refusal: { code: printable(error.code), message: printable(error.message) } };
}

type Outcomes = readonly LineOutcome[];

/** Undefined if it is not Ingest's answer to that many events. */
function outcomesOfEvents(status: number, body: unknown, count: number): Outcomes | undefined {
  const { data } = eventsShape.safeParse(body);
  if (data === undefined || (status !== 202 && status !== 207)) return undefined;
  const { accepted, rejected, results } = data;
  const refusals = new Map(
    results.rejected.map(({ index, code, message }) => [index, { code: printable(code), message: printable(message) }]),
  );
  const isWhole =
    [...refusals.keys()].every((index) => index < count) &&
    results.rejected.length === refusals.size &&
    results.accepted.length === count - refusals.size &&
    accepted === results.accepted.length &&
    rejected === refusals.size &&
    (status === 207) === refusals.size > 0;
  if (!isWhole) return undefined;
  const stored = results.accepted.values();
  return Array.from({ length: count }, (_, index) => {
    const { duplicate, conflict } = refusals.has(index) ? {} : (stored.next().value ?? {});
    return refusals.get(index) ?? (conflict ? "conflict" : duplicate ? "known" : "stored");
  });
}

const outcomesOfSnapshot = (status: number, body: unknown, isReplay = false): Outcomes | undefined =>
  status === 202 && snapshotShape.safeParse(body).success ? [isReplay ? "known" : "stored"] : undefined;

/** Whole seconds; undefined for any other text. The waiting code limits it. */
function retryAfterOf(header: string | null): number | undefined {
  return header !== null && /^\d{1,9}$/.test(header) ? Number(header) : undefined;
}

/** Makes a server's text safe for a terminal: one line of limited length, without control characters. */
const printable = (text: string) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, " ").slice(0, 500);
