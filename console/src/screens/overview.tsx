import { useQuery } from "@connectrpc/connect-query";
import { useMemo } from "react";
import { Link } from "wouter";
import { Admin, type App, type UsageRow, UsageGroup } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Plot } from "../components/plot.tsx";
import { Empty, Failed, Loading } from "../components/states.tsx";
import { type Column, Table } from "../components/table.tsx";
import { ago, count, dateOf, safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { text } from "../text.ts";

const own = text.overview;
const everyMs = 15_000;

export default function Overview(props: ScreenProps) {
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <Figures {...props} />
    </div>
  );
}

function Figures({ organizationId }: ScreenProps) {
  const usage = (by: UsageGroup) => ({ organizationId, by });
  const options = { refetchInterval: everyMs };
  const days = useQuery(Admin.method.getUsage, usage(UsageGroup.DAY), options);
  const apps = useQuery(Admin.method.getUsage, usage(UsageGroup.APP), options);
  const types = useQuery(Admin.method.getUsage, usage(UsageGroup.TYPE), options);
  const codes = useQuery(Admin.method.getUsage, usage(UsageGroup.CODE), options);
  const named = useQuery(Admin.method.listApps, { organizationId, pageSize: 500 });
  if (days.error !== null) return <Failed error={days.error} retry={days.refetch} />;
  if (days.data === undefined) return <Loading />;
  const nameOf = (id: string) => named.data?.apps.find((app) => app.id === id)?.name ?? id;
  const { events, quotaEventsPerMonth: quota, rows, month } = days.data;
  return (
    <>
      {rows.length === 0 ? (
        <Empty title={own.noEvents} detail={own.noEventsDetail}>
          <Link className="button" href="/keys">
            {text.nav.keys}
          </Link>
        </Empty>
      ) : (
        <Days month={month} rows={rows} />
      )}
      <div className="grid">
        <Quota events={events} quota={quota} />
        <Attention organizationId={organizationId} />
      </div>
      <div className="grid wide">
        <Sums title={own.byApp} by={own.app} rows={apps.data?.rows} nameOf={({ app = "" }) => nameOf(app)} />
        <Sums title={own.byType} by={own.type} rows={types.data?.rows} nameOf={({ type }) => type || own.otherTypes} />
        <Sums
          title={own.byCode}
          by={own.code}
          rows={codes.data?.rows.filter(({ code = "" }) => code !== "")}
          nameOf={({ code = "" }) => code}
        />
      </div>
    </>
  );
}

/** Every day of the month so far, also those without events. */
function Days({ month, rows }: { readonly month: string; readonly rows: readonly UsageRow[] }) {
  const { labels, series } = useMemo(() => {
    const last = Math.max(...rows.map(({ day = "" }) => Number(day.slice(8))));
    const days = Array.from({ length: last }, (_, i) => `${month}-${String(i + 1).padStart(2, "0")}`);
    const byDay = new Map(rows.map((row) => [row.day, row]));
    const values = (of: (row: UsageRow) => number) => days.map((day) => of(byDay.get(day) ?? noRow));
    return {
      labels: days.map((day) => day.slice(5)),
      series: [
        { name: own.accepted, color: "--good", values: values(({ accepted }) => accepted) },
        { name: own.rejected, color: "--bad", values: values(({ rejected }) => rejected) },
      ],
    };
  }, [month, rows]);
  return <Plot title={own.days} unit={own.events} by={own.day} labels={labels} series={series} />;
}

const noRow = { accepted: 0, rejected: 0 } as UsageRow;

function Quota({ events, quota }: { readonly events: number; readonly quota: number }) {
  const now = new Date();
  const begin = Date.UTC(now.getUTCFullYear(), now.getUTCMonth());
  const end = Date.UTC(now.getUTCFullYear(), now.getUTCMonth() + 1);
  const share = (now.getTime() - begin) / (end - begin);
  const projected = share > 0 ? Math.round(events / share) : events;
  const percent = quota === 0 ? 100 : Math.round((100 * projected) / quota);
  return (
    <section className="panel">
      <h2>{own.quota}</h2>
      <p className="figure">{quota === 0 ? "–" : `${((100 * events) / quota).toFixed(1)} %`}</p>
      <Meter share={quota === 0 ? 1 : events / quota} label={own.quota} />
      <p>{own.used(count(events), count(quota))}</p>
      <p className={percent > 100 ? "problem-text" : "soft"}>{own.projected(count(projected), percent)}</p>
    </section>
  );
}

const Meter = ({ share, label }: { readonly share: number; readonly label: string }) => (
  <div
    className="meter"
    role="meter"
    aria-label={label}
    aria-valuemin={0}
    aria-valuemax={100}
    aria-valuenow={Math.round(100 * Math.min(1, share))}
  >
    <div style={{ width: `${100 * Math.min(1, share)}%` }} />
  </div>
);

interface SumsProps {
  readonly title: string;
  readonly by: string;
  readonly rows: readonly UsageRow[] | undefined;
  readonly nameOf: (row: UsageRow) => string;
}

const sumsMax = 8;

function Sums({ title, by, rows = [], nameOf }: SumsProps) {
  const sorted = rows.toSorted((a, b) => b.accepted + b.rejected - a.accepted - a.rejected).slice(0, sumsMax);
  if (sorted.length === 0) return null;
  const columns: readonly Column<UsageRow>[] = [
    { name: by, of: (row) => safeText(nameOf(row)), isMono: true },
    { name: own.accepted, of: ({ accepted }) => count(accepted), isNumber: true },
    { name: own.rejected, of: ({ rejected }) => count(rejected), isNumber: true },
  ];
  return (
    <section className="panel">
      <h2>{title}</h2>
      <Table label={title} columns={columns} rows={sorted} keyOf={nameOf} />
    </section>
  );
}

const soonMs = 14 * 86_400_000;
const refusedMin = 10;

/** What somebody should look at: keys that expire, types that are refused often. */
function Attention({ organizationId }: ScreenProps) {
  const { data: apps } = useQuery(Admin.method.listApps, { organizationId, pageSize: 20 });
  return (
    <section className="panel">
      <h2>{own.attention}</h2>
      <ul className="stack attention">
        {apps?.apps.map((app) => (
          <AppAttention key={app.id} app={app} />
        ))}
      </ul>
      <p className="soft if-calm">{own.calm}</p>
    </section>
  );
}

const silentMs = 86_400_000;

/** Keys of an app that expire soon, and whether the app went silent. */
function AppAttention({ app }: { readonly app: App }) {
  const { data } = useQuery(Admin.method.listKeys, { appId: app.id, pageSize: 100 });
  const may = useMay();
  const { data: preview } = useQuery(
    Admin.method.previewAllow,
    { appId: app.id, allow: app.allow },
    { enabled: may.change, retry: false, staleTime: 60_000 },
  );
  const refused = preview?.byType.filter((one) => one.refused >= refusedMin).slice(0, 3) ?? [];
  const now = Date.now();
  const keys = data?.keys ?? [];
  const soon = keys.flatMap((key) => {
    const at = dateOf(key.expiresAt);
    const isSoon = at !== undefined && at.getTime() > now && at.getTime() - now < soonMs && key.revokedAt === undefined;
    return isSoon ? [{ key, at }] : [];
  });
  const lastUsedMs = Math.max(...keys.map(({ lastUsedAt }) => dateOf(lastUsedAt)?.getTime() ?? 0), 0);
  return (
    <>
      {lastUsedMs > 0 && now - lastUsedMs > silentMs && <li>{own.silent(safeText(app.name))}</li>}
      {refused.map(({ type, refused: events }) => (
        <li key={type}>{own.refused(safeText(type || own.otherTypes), safeText(app.name), count(events))}</li>
      ))}
      {soon.map(({ key, at }) => (
        <li key={key.id}>{own.expires(safeText(key.name || key.hint), ago(at))}</li>
      ))}
    </>
  );
}
