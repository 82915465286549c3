import { ConnectError, Code } from "@connectrpc/connect";
import { toJson } from "@bufbuild/protobuf";
import { defaultRangeExtractor, useVirtualizer } from "@tanstack/react-virtual";
import { type KeyboardEvent, useEffect, useLayoutEffect, useMemo, useRef, useState } from "react";
import { flushSync } from "react-dom";
import { Link } from "wouter";
import { type Arrival, ArrivalSchema } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { speaking } from "../../../src/speaking.ts";
import { admin, problemOf } from "../api.ts";
import type { ScreenProps } from "../app.tsx";
import { Field } from "../components/dialog.tsx";
import { Empty } from "../components/states.tsx";
import { dateOf, jsonText, safeText } from "../format.ts";
import { useKept, useRemembered } from "../kept.ts";
import { text } from "../text.ts";

const own = text.live;

/** Rows that stay on the page; older ones leave it. */
const rowsMax = 2_000;
const retryMsMax = 10_000;

type State = "connecting" | "open" | "paused" | { readonly problem: string };

interface Row {
  readonly id: number;
  readonly arrival: Arrival;
}

interface Arrivals {
  readonly rows: readonly Row[];
  readonly isMissed: boolean;
  readonly resumeToken: string | undefined;
}

const none: Arrivals = { rows: [], isMissed: false, resumeToken: undefined };
let nextId = 0;

/**
 * What arrives, newest first. After a lost connection, and when its user comes back from another screen, it goes on
 * where it stopped, or says that some are missing.
 */
function useArrivals(organizationId: string, isPaused: boolean) {
  const [arrivals, change] = useRemembered(`live ${organizationId}`, none);
  const [state, setState] = useState<State>("connecting");
  useEffect(() => {
    setState(isPaused ? "paused" : "connecting");
    if (isPaused) return undefined;
    let { resumeToken } = arrivals;
    const abort = new AbortController();
    void follow();
    return () => abort.abort();

    async function follow(): Promise<void> {
      for (let failures = 0; !abort.signal.aborted;) {
        try {
          const from = resumeToken === undefined ? {} : { resumeToken };
          const watch = (signal: AbortSignal) => admin.watchRequests({ organizationId, ...from }, { signal });
          for await (const message of speaking(watch, abort.signal)) {
            failures = 0;
            ({ resumeToken } = message);
            setState("open");
            const news = message.arrivals.map((arrival) => ({ id: nextId++, arrival })).reverse();
            change(({ rows, isMissed }) => ({
              rows: news.length === 0 ? rows : [...news, ...rows].slice(0, rowsMax),
              isMissed,
              resumeToken: message.resumeToken,
            }));
          }
        } catch (error) {
          if (abort.signal.aborted) return;
          const { code, message } = problemOf(error);
          setState({ problem: code === "offline" ? own.lost : message });
          if (ConnectError.from(error).code === Code.InvalidArgument && resumeToken !== undefined) {
            resumeToken = undefined;
            change((last) => ({ ...last, isMissed: true, resumeToken }));
          }
          failures++;
        }
        await new Promise((resolve) => setTimeout(resolve, Math.min(500 * 2 ** failures, retryMsMax)));
      }
    }
  }, [organizationId, isPaused]);
  const clear = () => change(({ resumeToken }) => ({ ...none, resumeToken }));
  return { ...arrivals, state, clear };
}

export default function Live({ organizationId }: ScreenProps) {
  const [isPaused, setPaused] = useState(false);
  const [only, setOnly] = useKept<"all" | "accepted" | "refused">("only", "all");
  const [filter, setFilter] = useRemembered(`live filter ${organizationId}`, "");
  const [shown, setShown] = useState<Row | undefined>();
  const { rows, state, isMissed, clear } = useArrivals(organizationId, isPaused);
  const wanted = filter.trim().toLowerCase();
  const fitting = useMemo(
    () =>
      rows.filter(
        ({ arrival }) =>
          (only === "all" || (only === "accepted") === (arrival.kind.case === "row")) &&
          (wanted === "" || summaryOf(arrival).toLowerCase().includes(wanted)),
      ),
    [rows, only, wanted],
  );
  return (
    <div className="stack">
      <div className="row">
        <h1>{own.title}</h1>
        <StateBadge state={state} />
        <span className="push" />
        <button type="button" onClick={clear}>
          {own.clear}
        </button>
        <button type="button" className="primary" onClick={() => setPaused(!isPaused)}>
          {isPaused ? own.resume : own.pause}
        </button>
      </div>
      {typeof state === "object" && (
        <p className="problem-text" role="alert">
          {state.problem}
        </p>
      )}
      {isMissed && (
        <p className="problem-text" role="alert">
          {own.missed}
        </p>
      )}
      <div className="grid">
        <Field label={own.show}>
          {(ids) => (
            <select {...ids} value={only} onChange={(event) => setOnly(event.currentTarget.value as typeof only)}>
              <option value="all">{own.all}</option>
              <option value="accepted">{own.accepted}</option>
              <option value="refused">{own.refused}</option>
            </select>
          )}
        </Field>
        <Field label={own.filter} hint={own.filterHint}>
          {(ids) => (
            <input
              {...ids}
              value={filter}
              spellCheck={false}
              onChange={({ currentTarget: { value } }) => setFilter(() => value)}
            />
          )}
        </Field>
      </div>
      {rows.length === 0 && state !== "open" ? (
        <Empty title={state === "paused" ? own.states.paused : own.noConnection} />
      ) : rows.length === 0 ? (
        <Empty title={own.waiting} detail={own.waitingDetail} />
      ) : fitting.length === 0 ? (
        <Empty title={own.noneFits} />
      ) : (
        <Rows rows={fitting} chosen={shown} choose={setShown} />
      )}
      {shown !== undefined && (
        <section className="panel" aria-live="polite">
          <div className="row">
            <h2>{own.json}</h2>
            <span className="push" />
            <Link href={`/requests/${shown.arrival.requestId}`}>{own.request}</Link>
          </div>
          <pre className="code" tabIndex={0}>
            {jsonText(toJson(ArrivalSchema, shown.arrival))}
          </pre>
        </section>
      )}
    </div>
  );
}

const badges = { connecting: "badge", open: "badge good", paused: "badge", lost: "badge bad" } as const;

function StateBadge({ state }: { readonly state: State }) {
  const name = typeof state === "object" ? "lost" : state;
  return (
    <span className={badges[name]} role="status">
      {own.states[name]}
    </span>
  );
}

interface RowsProps {
  readonly rows: readonly Row[];
  readonly chosen: Row | undefined;
  readonly choose: (row: Row) => void;
}

const rowHeight = 40;

/** Where a key leads from a row. */
const moves: Readonly<Record<string, (at: number, last: number) => number>> = {
  ArrowDown: (at, last) => Math.min(at + 1, last),
  ArrowUp: (at) => Math.max(at - 1, 0),
  Home: () => 0,
  End: (_, last) => last,
};

/**
 * A list of which only what is in view is on the page. It is one stop of the Tab key, or thousands of rows would lie
 * before what follows; the arrow keys move in it.
 */
function Rows({ rows, chosen, choose }: RowsProps) {
  const frame = useRef<HTMLDivElement>(null);
  const [activeId, setActiveId] = useState<number | undefined>();
  const active = Math.max(
    rows.findIndex(({ id }) => id === activeId),
    0,
  );
  const list = useVirtualizer({
    count: rows.length,
    getScrollElement: () => frame.current,
    estimateSize: () => rowHeight,
    getItemKey: (i) => rows[i]?.id ?? i,
    overscan: 12,
    // The focused row stays on the page while others are scrolled to.
    rangeExtractor: (range) => [...new Set([...defaultRangeExtractor(range), active])].toSorted((a, b) => a - b),
  });
  const newest = useRef(rows[0]?.id);
  // The same rows stay in view for somebody who reads here; at the top, without the focus, the newest ones do.
  useLayoutEffect(() => {
    const came = rows.findIndex(({ id }) => id === newest.current);
    newest.current = rows[0]?.id;
    const { current: at } = frame;
    if (at === null || came < 1) return;
    if (at.scrollTop > 0 || at.contains(document.activeElement)) at.scrollTop += came * rowHeight;
  }, [rows]);
  const move = (event: KeyboardEvent) => {
    const next = moves[event.key]?.(active, rows.length - 1);
    if (next === undefined) return;
    event.preventDefault();
    list.scrollToIndex(next);
    flushSync(() => setActiveId(rows[next]?.id));
    frame.current?.querySelector<HTMLElement>("[tabindex='0']")?.focus({ preventScroll: true });
  };
  return (
    <div ref={frame} className="live" role="region" aria-label={own.title}>
      <ul style={{ height: list.getTotalSize() }} onKeyDown={move}>
        {list.getVirtualItems().map(({ index, key, start }) => {
          const row = rows[index];
          if (row === undefined) return null;
          return (
            <li key={key} style={{ transform: `translateY(${start}px)` }}>
              <button
                type="button"
                aria-pressed={row === chosen}
                tabIndex={index === active ? 0 : -1}
                onFocus={() => setActiveId(row.id)}
                onClick={() => choose(row)}
              >
                <span className="mono soft">{dateOf(row.arrival.receivedAt)?.toLocaleTimeString("en-GB")}</span>
                <KindBadge arrival={row.arrival} />
                <span className="mono cut">{summaryOf(row.arrival)}</span>
              </button>
            </li>
          );
        })}
      </ul>
    </div>
  );
}

function KindBadge({ arrival }: { readonly arrival: Arrival }) {
  const { kind } = arrival;
  if (kind.case === "row") return <span className="badge good">{kind.value.kind}</span>;
  return <span className="badge bad">{kind.value?.code ?? ""}</span>;
}

/** A line about an arrival. Callers chose much of its text. */
function summaryOf({ kind }: Arrival): string {
  switch (kind.case) {
    case "row":
      return safeText(`${kind.value.type}  ${kind.value.workerId}`);
    case "rejected":
      return safeText(
        `events[${kind.value.index}]: ${kind.value.message}${kind.value.more > 0 ? ` … ${kind.value.more}` : ""}`,
      );
    case "refused":
      return safeText(`${kind.value.rpc} ${kind.value.reason ?? ""}`);
    default:
      return "";
  }
}
