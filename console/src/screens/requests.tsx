import { useQuery } from "@connectrpc/connect-query";
import type { SubmitEventHandler } from "react";
import { Link, useLocation } from "wouter";
import { errorTable } from "../../../src/errors.ts";
import { Admin, type RecordedRequest, RequestOutcome as Outcome } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Field } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { Empty, ErrorLink, Read } from "../components/states.tsx";
import { type Column, Table } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { count, safeText } from "../format.ts";
import { refusalsOf } from "../body.ts";
import { useKept } from "../kept.ts";
import { usePages } from "../pages.ts";
import { text } from "../text.ts";
import { Rejections, RequestBody } from "./request-body.tsx";

const own = text.requests;

const badges: Readonly<Record<Outcome, string>> = {
  [Outcome.UNSPECIFIED]: "badge",
  [Outcome.ACCEPTED]: "badge good",
  [Outcome.PARTLY_ACCEPTED]: "badge warn",
  [Outcome.REFUSED]: "badge bad",
  [Outcome.ABANDONED]: "badge",
};

export const OutcomeBadge = ({ outcome }: { readonly outcome: Outcome }) => (
  <span className={badges[outcome]}>{own.outcomes[outcome]}</span>
);

const columns: readonly Column<RecordedRequest>[] = [
  {
    name: own.received,
    of: ({ receivedAt, requestId }) => (
      // On a narrow screen the id lies outside.
      <Link href={`/requests/${requestId}`}>
        <Time at={receivedAt} />
      </Link>
    ),
  },
  { name: own.outcome, of: ({ outcome }) => <OutcomeBadge outcome={outcome} /> },
  {
    name: own.code,
    of: ({ code, rejections }) => code ?? [...new Set(rejections.map((one) => one.code))].join(", "),
    isMono: true,
  },
  { name: own.rpc, of: ({ rpc, protocol }) => `${rpc} · ${protocol}` },
  { name: own.accepted, of: ({ accepted }) => count(accepted), isNumber: true },
  { name: own.rejected, of: ({ rejected }) => count(rejected), isNumber: true },
  { name: own.id, of: ({ requestId }) => <Link href={`/requests/${requestId}`}>{requestId}</Link>, isMono: true },
];

/** The codes of ingest.v1. */
const codes = Object.entries(errorTable)
  .flatMap(([code, definition]) => ("isOfAdmin" in definition ? [] : [code]))
  .toSorted();

export default function Requests({ organizationId }: ScreenProps) {
  const [code, setCode] = useKept("code", "");
  const [outcome, setOutcome] = useKept<Outcome>("outcome", Outcome.UNSPECIFIED);
  const filters = {
    ...(code === "" ? {} : { code }),
    ...(outcome === Outcome.UNSPECIFIED ? {} : { outcome }),
  };
  const { data, pages } = usePages(Admin.method.listRequests, { organizationId, pageSize: 50, ...filters });
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <p className="soft">{own.lead}</p>
      <FindRequest />
      <div className="grid">
        <Field label={own.code}>
          {(ids) => (
            <select {...ids} value={code} onChange={(event) => setCode(event.currentTarget.value)}>
              <option value="">{own.allCodes}</option>
              {codes.map((name) => (
                <option key={name} value={name}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Field label={own.outcome}>
          {(ids) => (
            <select {...ids} value={outcome} onChange={(event) => setOutcome(Number(event.currentTarget.value))}>
              {Object.entries(own.outcomeFilters).map(([value, name]) => (
                <option key={value} value={value}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
      </div>
      <Listed
        label={own.title}
        pages={pages}
        rows={data?.requests ?? []}
        columns={columns}
        keyOf={({ requestId, receivedAt }) => `${requestId} ${receivedAt?.seconds} ${receivedAt?.nanos}`}
        empty={<Empty title={own.none} detail={own.noneDetail} />}
      />
    </div>
  );
}

function FindRequest() {
  const [, navigate] = useLocation();
  const submit: SubmitEventHandler<HTMLFormElement> = (event) => {
    event.preventDefault();
    const id = /req_[0-9A-Z]{26}/.exec(String(new FormData(event.currentTarget).get("id")))?.[0];
    if (id !== undefined) navigate(`/requests/${id}`);
  };
  return (
    <form className="row" role="search" onSubmit={submit}>
      <Field label={own.find} hint={own.findHint}>
        {(ids) => (
          <input {...ids} name="id" placeholder="req_…" spellCheck={false} required pattern=".*req_[0-9A-Z]{26}.*" />
        )}
      </Field>
      <button type="submit">{own.explain}</button>
    </form>
  );
}

/** The message of a refused request: a line for each part of the body that it names. */
function Reason({ record }: { readonly record: RecordedRequest }) {
  const parts = record.code === "invalid_body" ? refusalsOf(record) : [];
  if (parts.length < 2) return <p>{safeText(record.reason ?? "")}</p>;
  return (
    <ul className="parts">
      {parts.map(({ place, message }) => (
        <li key={`${place} ${message}`}>
          <span className="mono">{safeText(place)}</span>: {safeText(message)}
        </li>
      ))}
    </ul>
  );
}

/** The RPCs whose requests have something to refuse. */
const bodyRpcs: ReadonlySet<string> = new Set(["Events", "Snapshots"]);

/** What became of one request. */
export function Request({ requestId }: { readonly requestId: string }) {
  const request = useQuery(Admin.method.getRequest, { requestId });
  return <Read of={request}>{(record) => <Record of={record} />}</Read>;
}

function Record({ of: data }: { readonly of: RecordedRequest }) {
  const facts: readonly (readonly [string, React.ReactNode])[] = [
    [own.received, <Time key="at" at={data.receivedAt} isExact />],
    [own.rpc, `${data.rpc} · ${data.protocol || "–"}`],
    [own.status, data.status === 0 ? own.unknown : data.status],
    [own.accepted, count(data.accepted)],
    [own.rejected, count(data.rejected)],
    [own.duplicates, count(data.duplicates)],
    [own.key, data.keyHint === "" ? own.unknown : <code key="key">{data.keyHint}</code>],
    [own.idempotency, data.idempotencyKey ?? own.noKey],
    [own.duration, data.durationMs === undefined ? own.unknown : `${data.durationMs} ms`],
    [own.trace, data.traceId === undefined ? own.unknown : <code key="trace">{data.traceId}</code>],
  ];
  return (
    <>
      <p>
        <Link href="/requests">{own.title}</Link>
      </p>
      <div className="row">
        <h1 className="mono">{data.requestId}</h1>
        <OutcomeBadge outcome={data.outcome} />
        {data.test && <span className="badge">{text.keys.test}</span>}
        {data.dryRun && <span className="badge">{own.dryRun}</span>}
      </div>
      {data.code !== undefined && (
        <section className="panel">
          <h2>
            <ErrorLink code={data.code} />
          </h2>
          <Reason record={data} />
        </section>
      )}
      <section className="panel">
        <dl className="facts">
          {facts.map(([name, value]) => (
            <div key={name}>
              <dt>{name}</dt>
              <dd>{value}</dd>
            </div>
          ))}
        </dl>
      </section>
      {bodyRpcs.has(data.rpc) ? <RequestBody key={data.requestId} record={data} /> : <Rejections record={data} />}
      {data.replays.length > 0 && (
        <section className="panel">
          <h2>{own.replays}</h2>
          <Table
            label={own.replays}
            rows={data.replays}
            keyOf={({ receivedAt }) => `${receivedAt?.seconds} ${receivedAt?.nanos}`}
            columns={[
              { name: own.received, of: ({ receivedAt }) => <Time at={receivedAt} /> },
              { name: own.rpc, of: ({ protocol }) => protocol },
              { name: own.status, of: ({ status }) => status, isNumber: true },
              { name: own.key, of: ({ keyHint }) => keyHint, isMono: true },
            ]}
          />
          {data.moreReplays && <p className="soft">{own.moreReplays}</p>}
        </section>
      )}
      {data.eventIds.length > 0 && (
        <details className="panel">
          <summary>{own.rows(count(data.eventIds.length))}</summary>
          <pre className="code tall" tabIndex={0}>
            {data.eventIds.join("\n")}
          </pre>
        </details>
      )}
    </>
  );
}
