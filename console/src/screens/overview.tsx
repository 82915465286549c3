import { useInfiniteQuery, useQuery } from "@connectrpc/connect-query";
import { type ReactNode, useMemo, useState } from "react";
import { Link } from "wouter";
import {
  Admin,
  type App,
  type Key,
  Scope,
  type Usage,
  type UsageRow,
  UsageGroup,
} from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { problemOf } from "../api.ts";
import type { ScreenProps } from "../app.tsx";
import { Action } from "../components/action.tsx";
import { Plot } from "../components/plot.tsx";
import { Empty, ErrorLink, Read } from "../components/states.tsx";
import { type Column, Table } from "../components/table.tsx";
import { daysOf } from "../figures.ts";
import { ago, count, dateOf, percent, safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { byPageToken } from "../pages.ts";
import { text } from "../text.ts";
import { useTick } from "../tick.ts";
import { Traffic } from "./traffic.tsx";

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
  return (
    <Read of={days}>
      {({ events, quotaEventsPerMonth: quota, rows, month }) => (
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
          <Traffic organizationId={organizationId} />
          <div className="grid wide">
            <Sums
              title={own.byApp}
              by={own.app}
              usage={apps}
              keyOf={({ app = "" }) => app}
              nameOf={(id) => <AppName id={id} />}
            />
            <Sums
              title={own.byType}
              by={own.type}
              usage={types}
              keyOf={({ type = "" }) => type}
              nameOf={(type) => safeText(type || own.otherTypes)}
            />
            <Sums
              title={own.byCode}
              by={own.code}
              usage={codes}
              // Accepted events have no code.
              isRefused
              keyOf={({ code = "" }) => code}
              nameOf={(code) => <ErrorLink code={code} />}
            />
          </div>
        </>
      )}
    </Read>
  );
}

/** Every day of the month so far, also those without events. */
function Days({ month, rows }: { readonly month: string; readonly rows: readonly UsageRow[] }) {
  const { labels, series } = useMemo(() => {
    const byDay = new Map(rows.map((row) => [row.day ?? "", row]));
    const days = daysOf(month, [...byDay.keys()], new Date());
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
  // A quota of zero has no shares.
  const shareOf = (of: number) => (quota === 0 ? undefined : percent(of / quota));
  return (
    <section className="panel">
      <h2>{own.quota}</h2>
      <p className="figure">{shareOf(events) ?? "–"}</p>
      <Meter share={quota === 0 ? 1 : events / quota} label={own.quota} />
      <p>{own.used(count(events), count(quota))}</p>
      <p className={projected > quota ? "problem-text" : "soft"}>
        {own.projected(count(projected), shareOf(projected))}
      </p>
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
  /** Whether only refused events count. */
  readonly isRefused?: boolean;
  readonly usage: {
    readonly data: Usage | undefined;
    readonly error: unknown;
    readonly refetch: () => unknown;
  };
  readonly keyOf: (row: UsageRow) => string;
  readonly nameOf: (key: string) => ReactNode;
}

const acceptedColumn: Column<UsageRow> = { name: own.accepted, of: ({ accepted }) => count(accepted), isNumber: true };
const sumsMax = 8;
const sumsMost = 50;

/** The name of an app; its id, once it is deleted. */
function AppName({ id }: { readonly id: string }) {
  const { data } = useQuery(Admin.method.getApp, { appId: id }, { staleTime: 60_000 });
  return safeText(data?.name ?? id);
}

function Sums({ title, by, isRefused = false, usage, keyOf, nameOf }: SumsProps) {
  const [isAll, setAll] = useState(false);
  const rows = usage.data?.rows.filter((row) => !isRefused || keyOf(row) !== "") ?? [];
  if (usage.data !== undefined && rows.length === 0) return null;
  const sorted = rows.toSorted((a, b) => b.accepted + b.rejected - a.accepted - a.rejected);
  const columns: readonly Column<UsageRow>[] = [
    { name: by, of: (row) => nameOf(keyOf(row)), isMono: true },
    ...(isRefused ? [] : [acceptedColumn]),
    { name: own.rejected, of: ({ rejected }) => count(rejected), isNumber: true },
  ];
  const shown = sorted.slice(0, isAll ? sumsMost : sumsMax);
  return (
    <section className="panel sums">
      <h2>{title}</h2>
      <Read of={usage}>{() => <Table label={title} columns={columns} rows={shown} keyOf={keyOf} />}</Read>
      {rows.length > sumsMax && (
        <p className="row small soft">
          {own.most(count(shown.length), count(rows.length))}
          <button type="button" onClick={() => setAll(!isAll)}>
            {isAll ? own.fewer : own.further}
          </button>
        </p>
      )}
    </section>
  );
}

const soonMs = 14 * 86_400_000;
const shortSeconds = 86_400;
const silentMs = 86_400_000;
const refusedMin = 10;
/** Lines of one kind about an app; the last one counts the others. */
const linesMax = 3;
const keysMax = 500;

/** What somebody should look at: keys that expire, types that are refused often, apps that went silent. */
function Attention({ organizationId }: ScreenProps) {
  const list = useInfiniteQuery(Admin.method.listApps, { organizationId, pageSize: 20, pageToken: "" }, byPageToken);
  const usage = useQuery(Admin.method.getUsage, { organizationId, by: UsageGroup.APP });
  const apps = list.data?.pages.flatMap((page) => page.apps) ?? [];
  const refused = new Map(usage.data?.rows.map(({ app, rejected }) => [app, rejected]));
  return (
    <section className="panel">
      <h2>{own.attention}</h2>
      <Read of={list}>
        {() => (
          <>
            <ul className="stack attention">
              {usage.data === undefined && usage.error !== null && (
                <li className="problem-text">{own.usageUnknown(problemOf(usage.error).message)}</li>
              )}
              {usage.isPending && <li className="soft looking">{own.looking}</li>}
              {apps.map((app) => (
                <AppAttention key={app.id} app={app} refused={refused.get(app.id) ?? 0} />
              ))}
            </ul>
            <p className="soft if-calm">{own.calm}</p>
          </>
        )}
      </Read>
      {list.hasNextPage && (
        <p className="row small soft">
          {own.looked(count(apps.length))}
          <Action isOff={list.isFetchingNextPage} onClick={list.fetchNextPage}>
            {own.lookFurther}
          </Action>
        </p>
      )}
    </section>
  );
}

interface AppAttentionProps {
  readonly app: App;
  /** Its events that were refused this month, for whatever reason. */
  readonly refused: number;
}

/** Whether a key was made to expire soon, as the console's own keys are. */
const isShortLived = ({ createdAt, expiresAt }: Key) =>
  Number(expiresAt?.seconds) - Number(createdAt?.seconds) <= shortSeconds;

/** Keys of an app that expire soon, types that it is refused often, and whether it went silent. */
function AppAttention({ app, refused }: AppAttentionProps) {
  const may = useMay();
  const list = useQuery(Admin.method.listKeys, { appId: app.id, pageSize: keysMax });
  const preview = useQuery(
    Admin.method.previewAllow,
    { appId: app.id, allow: app.allow },
    // A preview may read all records of an app.
    { enabled: may.change && refused >= refusedMin, retry: false, staleTime: 60_000 },
  );
  useTick();
  const now = Date.now();
  const name = safeText(app.name);
  const keys = list.data?.keys ?? [];
  const soon = keys
    .flatMap((key) => {
      const at = dateOf(key.expiresAt);
      const isSoon = at !== undefined && at.getTime() > now && at.getTime() - now < soonMs;
      return isSoon && key.revokedAt === undefined && !isShortLived(key) ? [{ key, at }] : [];
    })
    .toSorted((a, b) => a.at.getTime() - b.at.getTime());
  const types = preview.data?.byType.filter((one) => one.refused >= refusedMin) ?? [];
  // An app that is silent may still be read.
  const senders = keys.filter(({ scopes }) => scopes.includes(Scope.INGEST));
  const lastUsedMs = Math.max(...senders.map(({ lastUsedAt }) => dateOf(lastUsedAt)?.getTime() ?? 0), 0);
  const [failed] = [list, preview].filter(({ data, error }) => data === undefined && error !== null);
  const hasAllKeys = list.data?.nextPageToken === "";
  return (
    <>
      {failed !== undefined && <li className="problem-text">{own.unlooked(name, problemOf(failed.error).message)}</li>}
      {hasAllKeys && lastUsedMs > 0 && now - lastUsedMs > silentMs && <li>{own.silent(name)}</li>}
      {types.slice(0, linesMax).map(({ type, refused: events }) => (
        <li key={type}>{own.refused(safeText(type || own.otherTypes), name, count(events))}</li>
      ))}
      {types.length > linesMax && <li>{own.moreRefused(types.length - linesMax, name)}</li>}
      {soon.slice(0, linesMax).map(({ key, at }) => (
        <li key={key.id}>{own.expires(safeText(key.name || key.hint), name, ago(at))}</li>
      ))}
      {soon.length > linesMax && <li>{own.moreExpire(soon.length - linesMax, name)}</li>}
      {(list.isLoading || preview.isLoading) && <li className="soft looking">{own.looking}</li>}
      {list.data !== undefined && !hasAllKeys && <li>{own.manyKeys(name, keysMax)}</li>}
    </>
  );
}
