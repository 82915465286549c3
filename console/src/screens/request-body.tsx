import { type SubmitEventHandler, useMemo, useState } from "react";
import type { RecordedRequest } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { bodies, type Body, eventsOf, type Fate, fatesOf, isOther, readBody, type Refusal } from "../body.ts";
import { Field } from "../components/dialog.tsx";
import { Pager } from "../components/pager.tsx";
import { ErrorLink } from "../components/states.tsx";
import { safeText } from "../format.ts";
import { jsonLines } from "../json-lines.ts";
import { text } from "../text.ts";

const own = text.body;

interface RequestProps {
  readonly record: RecordedRequest;
}

/** The refusals of a record without the events. */
export function Rejections({ record: { rejections, rejected } }: RequestProps) {
  if (rejections.length === 0) return null;
  return (
    <section className="panel">
      <h2>{text.requests.rejections}</h2>
      <ul className="parts">
        {rejections.map(({ index, code, message }) => (
          <li key={index}>
            <span className="mono">
              {own.event(index)} <ErrorLink code={code} />
            </span>
            <br />
            {safeText(message)}
          </li>
        ))}
      </ul>
      {rejected > rejections.length && (
        <p className="soft">{text.requests.moreRejections(rejected - rejections.length)}</p>
      )}
    </section>
  );
}

/** Each refusal of a request beside the event's JSON. The service keeps no bodies, so the developer gives it. */
export function RequestBody({ record }: RequestProps) {
  const { requestId } = record;
  const [body, setBody] = useState(() => bodies.of(requestId));
  const use = (chosen: Body) => {
    bodies.keep(requestId, chosen);
    setBody(chosen);
  };
  const leave = () => {
    bodies.forget(requestId);
    setBody(undefined);
  };
  if (body === undefined) {
    return (
      <>
        <Rejections record={record} />
        <section className="panel">
          <h2>{own.title}</h2>
          <Paste rpc={record.rpc} use={use} />
        </section>
      </>
    );
  }
  return (
    <section className="panel">
      <div className="row">
        <h2>{own.title}</h2>
        <span className="push" />
        <button type="button" onClick={leave}>
          {own.other}
        </button>
      </div>
      <Beside record={record} body={body} />
    </section>
  );
}

function Paste({ rpc, use }: { readonly rpc: string; readonly use: (body: Body) => void }) {
  const [problem, setProblem] = useState<string | undefined>();
  const submit: SubmitEventHandler<HTMLFormElement> = (event) => {
    event.preventDefault();
    try {
      use(readBody(String(new FormData(event.currentTarget).get("body")), rpc));
    } catch (error) {
      setProblem((error as Error).message);
    }
  };
  return (
    <form className="stack" onSubmit={submit}>
      <p className="soft">
        {own.lead} {own.local}
      </p>
      <Field label={own.paste} hint={own.pasteHint}>
        {(ids) => <textarea {...ids} name="body" spellCheck={false} autoComplete="off" />}
      </Field>
      {problem !== undefined && (
        <p className="problem-text" role="alert">
          {problem}
        </p>
      )}
      <div>
        <button type="submit">{own.show}</button>
      </div>
    </form>
  );
}

const pageSize = 10;

function Beside({ record, body }: RequestProps & { readonly body: Body }) {
  const fates = useMemo(() => fatesOf(record, body), [record, body]);
  const refused = useMemo(() => fates.flatMap(({ kind }, i) => (kind === "refused" ? [i] : [])), [fates]);
  const [isAll, setAll] = useState(refused.length === 0);
  const [page, setPage] = useState(1);
  const shown = isAll ? fates.map((_, i) => i) : refused;
  const pages = Math.max(1, Math.ceil(shown.length / pageSize));
  const recorded = eventsOf(record);
  const given = body.items.length;
  return (
    <>
      {isOther(record, body) && (
        <p className="notice warn" role="status">
          {recorded === undefined ? own.otherPlaces(given) : own.otherBody(given, recorded)}
        </p>
      )}
      <div className="row">
        <p className="soft">
          {body.isBatch && `${own.sum(given, refused.length)} `}
          {own.local}
        </p>
        <span className="push" />
        {refused.length > 0 && refused.length < fates.length && (
          <select
            className="inline"
            aria-label={own.show1}
            value={String(isAll)}
            onChange={(event) => {
              setAll(event.currentTarget.value === "true");
              setPage(1);
            }}
          >
            <option value="false">{own.refused}</option>
            <option value="true">{own.all}</option>
          </select>
        )}
      </div>
      {refused.length === 0 && record.code !== undefined && <p className="soft">{own.noneRefused}</p>}
      <ol className="beside">
        {shown.slice((page - 1) * pageSize, page * pageSize).map((i) => (
          <Item key={i} index={body.isBatch ? i : undefined} fate={fates[i] as Fate} json={body.items[i]} />
        ))}
      </ol>
      <Pager page={page} pages={pages} isLast={page >= pages} onTurn={setPage} />
    </>
  );
}

interface ItemProps {
  /** Absent for a body that is no batch. */
  readonly index: number | undefined;
  readonly fate: Fate;
  readonly json: unknown;
}

const Refusals = ({ of: refusals }: { readonly of: readonly Refusal[] }) => (
  <>
    <p className="mono">
      <ErrorLink code={refusals[0]?.code ?? ""} />
    </p>
    {refusals.map(({ isNamed, path, message }) => (
      <p key={`${path} ${message}`}>
        {isNamed && path !== "" && <span className="mono">{safeText(path)}: </span>}
        {safeText(message)}
      </p>
    ))}
  </>
);

const badges = { refused: "badge bad", accepted: "badge good", unstored: "badge", uncertain: "badge" } as const;

/** An event: what became of it, beside its JSON with the members at fault. */
function Item({ index, fate, json }: ItemProps) {
  const lines = useMemo(() => {
    const refusals = fate.kind === "refused" ? fate.refusals : [];
    const marks = refusals.map(({ path, message, code }) => ({
      path,
      isMissing: code === "missing_actor" || /\bmissing\b/.test(message),
    }));
    return jsonLines(json, marks);
  }, [fate, json]);
  const name = index === undefined ? own.whole : own.event(index);
  return (
    <li>
      <div className="stack top">
        <p className="row">
          <span className="mono">{name}</span>
          <span className={badges[fate.kind]}>{own.fates[fate.kind]}</span>
        </p>
        {fate.kind === "refused" && <Refusals of={fate.refusals} />}
        {fate.kind === "accepted" && fate.rowId !== undefined && (
          <p className="small soft">
            {own.row} <span className="mono">{fate.rowId}</span>
          </p>
        )}
        {(fate.kind === "unstored" || fate.kind === "uncertain") && <p className="small soft">{own[fate.kind]}</p>}
      </div>
      <pre className="code" tabIndex={0} aria-label={`${own.sentJson}: ${name}`}>
        {lines.map((line, i) => (line.isMarked ? <mark key={i}>{line.text}</mark> : <span key={i}>{line.text}</span>))}
      </pre>
    </li>
  );
}
