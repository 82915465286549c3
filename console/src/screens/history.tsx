import { useQuery } from "@connectrpc/connect-query";
import { useInfiniteQuery, useQuery as usePlainQuery } from "@tanstack/react-query";
import { useMemo, useState } from "react";
import { Admin } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { type TimelineEvent, TimelineKind } from "../../../src/gen/ingest/v1/timeline_pb.js";
import { isEnding, problemOf, timelineFor } from "../api.ts";
import { Action } from "../components/action.tsx";
import { Plot } from "../components/plot.tsx";
import { Empty, Read } from "../components/states.tsx";
import { type Column, More, Table } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { dateOf, minute, safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { byPageToken } from "../pages.ts";
import { useReadKey } from "../read-key.ts";
import { settingsQuery } from "../settings.ts";
import { text } from "../text.ts";

const own = text.history;

interface HistoryProps {
  readonly organizationId: string;
  readonly workerId: string;
}

/** A worker's timeline, with the figures of its snapshots as plots. */
export function History({ organizationId, workerId }: HistoryProps) {
  const may = useMay();
  const { key, make, drop, isPending, error } = useReadKey(organizationId);
  const { data: apps } = useQuery(Admin.method.listApps, { organizationId, pageSize: 1 });
  const [app] = apps?.apps ?? [];
  if (key !== undefined) return <Rows readKey={key} drop={drop} workerId={workerId} />;
  if (!may.change || app === undefined) return null;
  return (
    <section className="panel">
      <h2>{own.title}</h2>
      <p className="soft">{own.needsKey}</p>
      {error !== null && <p className="problem-text">{problemOf(error).message}</p>}
      <div>
        <Action isOff={isPending} onClick={() => make(app.id)}>
          {own.makeKey}
        </Action>
      </div>
    </section>
  );
}

interface RowsProps {
  readonly readKey: string;
  readonly drop: (readKey: string) => void;
  readonly workerId: string;
}

function Rows({ readKey, drop, workerId }: RowsProps) {
  const { data: settings } = usePlainQuery(settingsQuery);
  const list = useInfiniteQuery({
    enabled: settings !== undefined,
    queryKey: ["timeline", workerId],
    initialPageParam: "",
    // All pages of a long timeline would be read again.
    refetchOnWindowFocus: false,
    queryFn: ({ pageParam, signal }) =>
      timelineFor(readKey, settings?.ingestUrl ?? "")
        .listEvents({ workerId, pageSize: 100, ...(pageParam === "" ? {} : { pageToken: pageParam }) }, { signal })
        .catch((error: unknown) => {
          if (isEnding(problemOf(error).code)) drop(readKey);
          throw error;
        }),
    getNextPageParam: byPageToken.getNextPageParam,
  });
  const rows = useMemo(() => list.data?.pages.flatMap((page) => page.events) ?? [], [list.data]);
  const { data, refetch, isFetchNextPageError, error } = list;
  return (
    // An error of the next page stands beside its button.
    <Read of={{ data, refetch, error: isFetchNextPageError ? null : error }}>
      {() =>
        rows.length === 0 ? (
          <Empty title={own.none} />
        ) : (
          <>
            <Figures rows={rows} />
            <section className="panel">
              <h2>{own.title}</h2>
              <Table label={own.title} rows={rows} keyOf={({ id }) => id} columns={columns} />
              {isFetchNextPageError && (
                <p className="problem-text" role="alert">
                  {problemOf(error).message}
                </p>
              )}
              <More list={list} />
            </section>
          </>
        )
      }
    </Read>
  );
}

const columns: readonly Column<TimelineEvent>[] = [
  { name: own.when, of: ({ timestamp }) => <Time at={timestamp} /> },
  { name: own.type, of: ({ type }) => safeText(type), isMono: true },
  { name: own.kind, of: ({ kind }) => own.kinds[kind] },
  {
    name: own.metadata,
    of: ({ metadata }) => metadata !== undefined && <Metadata json={JSON.stringify(metadata, undefined, 2)} />,
    isMono: true,
  },
];

const metadataMax = 80;

/** The beginning of metadata, and the whole if asked. */
function Metadata({ json }: { readonly json: string }) {
  const line = json.replaceAll(/\n */g, " ");
  if (line.length <= metadataMax) return safeText(line);
  return (
    <details>
      <summary className="mono">{safeText(line.slice(0, metadataMax))}…</summary>
      <pre className="code tall" tabIndex={0} aria-label={own.metadata}>
        {json.split("\n").map(safeText).join("\n")}
      </pre>
    </details>
  );
}

const plotsMax = 6;

/** A plot for each figure that several snapshots have. */
function Figures({ rows }: { readonly rows: readonly TimelineEvent[] }) {
  const plots = useMemo(() => {
    const figures = new Map<string, { at: Date; value: number }[]>();
    for (const { kind, type, metrics, timestamp } of rows) {
      const at = dateOf(timestamp);
      if (kind !== TimelineKind.SNAPSHOT || at === undefined) continue;
      for (const [name, metric] of Object.entries(metrics)) {
        const value =
          metric.kind.case === "number"
            ? metric.kind.value
            : metric.kind.case === "measure"
              ? metric.kind.value.value
              : undefined;
        if (value === undefined) continue;
        const title = `${type} · ${name}`;
        figures.set(title, [{ at, value }, ...(figures.get(title) ?? [])]);
      }
    }
    return [...figures]
      .filter(([, points]) => points.length > 1)
      .map(([title, points]) => ({
        title: safeText(title),
        labels: points.map(({ at }) => minute(at)),
        series: [{ name: own.value, color: "--accent", values: points.map(({ value }) => value) }],
      }));
  }, [rows]);
  const [isAll, setAll] = useState(false);
  if (plots.length === 0) return null;
  return (
    <>
      <div className="grid">
        {plots.slice(0, isAll ? plots.length : plotsMax).map(({ title, labels, series }) => (
          <Plot key={title} title={title} unit="" by={own.when} labels={labels} series={series} />
        ))}
      </div>
      {plots.length > plotsMax && !isAll && (
        <div>
          <button type="button" onClick={() => setAll(true)}>
            {own.morePlots(plots.length - plotsMax)}
          </button>
        </div>
      )}
    </>
  );
}
