import { z } from "zod";
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
}

export type Answer =
  /** One for each line, in order; undefined for a stored line. */
  | { readonly kind: "lines"; readonly outcomes: readonly (Refusal | undefined)[] }
  /** Nothing was stored. */
  | { readonly kind: "refused"; readonly refusal: Refusal }
  /** No valid answer: send the same request again. */
  | {
      readonly kind: "none";
      readonly trouble: string;
      readonly mayBeStored: boolean;
      readonly retryAfterSeconds?: number | undefined;
    }
  /** No try with this command line can succeed. Nothing was stored. */
  | { readonly kind: "mistake"; readonly message: string };

const errorShape = z.object({ error: z.object({ code: z.string(), message: z.string() }) });

const eventsShape = z.object({
  accepted: z.int(),
  rejected: z.int(),
  results: z.object({
    accepted: z.array(z.unknown()),
    rejected: z.array(z.object({ index: z.int().min(0), code: z.string(), message: z.string() })),
  }),
});

const snapshotShape = z.object({ requestId: z.string(), ok: z.literal(true), snapshotType: z.string() });

/** Statuses below 500 that may pass without a change of the request. */
const laterStatuses: ReadonlySet<number> = new Set([408, 421, 425, 429]);

/** Never throws: anything between us and Ingest may have replied. */
export function answerOf({ status, text, retryAfter, location }: Reply, { name }: SourceKind, count: number): Answer {
  const body = jsonOf(text);
  const outcomes = name === "event" ? outcomesOfEvents(status, body, count) : outcomesOfSnapshot(status, body);
  if (outcomes !== undefined) return { kind: "lines", outcomes };
  const error = errorShape.safeParse(body).data?.error;
  if (status >= 500 || laterStatuses.has(status)) {
    const trouble = error === undefined ? `status ${status}` : printable(error.message);
    const retryAfterSeconds = retryAfterOf(retryAfter);
    return { kind: "none", trouble, mayBeStored: status >= 500, retryAfterSeconds };
  }
  if (status >= 300 && status < 400) {
    const to = location === null ? "" : ` to ${printable(location)}`;
    return { kind: "mistake", message: `The service answers with a redirect${to}; --url must name where it leads.` };
  }
  if (status < 300)
    return { kind: "none", trouble: `status ${status} with an answer that is not Ingest's`, mayBeStored: true };
  if (error === undefined) {
    return { kind: "mistake", message: `Status ${status}: the answer is not Ingest's. Check --url.` };
  }
  return { kind: "refused", refusal: { code: printable(error.code), message: printable(error.message) } };
}

type Outcomes = readonly (Refusal | undefined)[];

/** Undefined if it is not Ingest's answer to that many events. */
function outcomesOfEvents(status: number, body: unknown, count: number): Outcomes | undefined {
  const { data } = eventsShape.safeParse(body);
  if (data === undefined || (status !== 202 && status !== 207)) return undefined;
  const { accepted, rejected, results } = data;
  const outcomes: (Refusal | undefined)[] = Array.from({ length: count }, () => undefined);
  for (const { index, code, message } of results.rejected) {
    outcomes[index] = { code: printable(code), message: printable(message) };
  }
  const refused = outcomes.filter((outcome) => outcome !== undefined).length;
  const isWhole =
    outcomes.length === count &&
    results.rejected.length === refused &&
    results.accepted.length === count - refused &&
    accepted === count - refused &&
    rejected === refused &&
    (status === 207) === refused > 0;
  return isWhole ? outcomes : undefined;
}

const outcomesOfSnapshot = (status: number, body: unknown): Outcomes | undefined =>
  status === 202 && snapshotShape.safeParse(body).success ? [undefined] : undefined;

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/** Whole seconds; undefined for any other text. The waiting code limits it. */
function retryAfterOf(header: string | null): number | undefined {
  return header !== null && /^\d{1,9}$/.test(header) ? Number(header) : undefined;
}

/** Makes a server's text safe for a terminal: one line of limited length, without control characters. */
const printable = (text: string) => text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+/gu, " ").slice(0, 500);
