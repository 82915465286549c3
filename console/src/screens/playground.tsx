import { useQuery } from "@connectrpc/connect-query";
import { useQuery as usePlainQuery } from "@tanstack/react-query";
import { Link } from "wouter";
import { Admin } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { EventSchema, SnapshotsRequestSchema } from "../../../src/gen/ingest/v1/ingest_pb.js";
import { serviceUrl } from "../api.ts";
import type { ScreenProps } from "../app.tsx";
import { bodies, bodyOf } from "../body.ts";
import { sendCalls } from "../calls.ts";
import { Code } from "../components/copy.tsx";
import { Field } from "../components/dialog.tsx";
import { ErrorLink } from "../components/states.tsx";
import { jsonText } from "../format.ts";
import { useRemembered } from "../kept.ts";
import { useRepeatable } from "../repeatable.ts";
import { type Json, SchemaForm } from "../schema-form.tsx";
import { whileSessionLasts } from "../session.ts";
import { settingsQuery } from "../settings.ts";
import { text } from "../text.ts";

const own = text.playground;

interface Sending {
  readonly isDryRun: boolean;
}

interface Answer extends Sending {
  readonly status: number;
  readonly requestId: string | null;
  readonly body: unknown;
}

type Shown = Sending | Answer | Error | undefined;
type Kind = "events" | "snapshots";

interface Draft {
  readonly kind: Kind;
  readonly values: Readonly<Record<Kind, Json>>;
  readonly key: string;
}

const actor = { externalId: "crm-user-42" };
const firstDraft: Draft = {
  kind: "events",
  values: {
    events: { eventType: "ticket.resolved", category: "project_management", actor },
    snapshots: { snapshotType: "tickets_open", actor, metrics: { open: 7 } },
  },
  key: "",
};

/** The members of a message that lie within others of its oneofs and enums, as protobuf's JSON writes them. */
function rpcJson(kind: Kind, value: Json): Json {
  if (kind === "events") {
    const { category, ...event } = value;
    const name = typeof category === "string" ? { category: `EVENT_CATEGORY_${category.toUpperCase()}` } : {};
    return { events: [{ ...event, ...name }] };
  }
  const metrics = Object.entries((value.metrics as Json | undefined) ?? {}).map(([name, metric]) => [
    name,
    typeof metric === "number"
      ? { number: metric }
      : typeof metric === "string"
        ? { label: metric }
        : { measure: metric },
  ]);
  return { ...value, metrics: Object.fromEntries(metrics) as Json };
}

/** Apps may have thousands of types, and the browser shows suggestions in one list. */
const suggestionsMax = 200;

export default function Playground({ organizationId }: ScreenProps) {
  const [{ kind, values, key }, setDraft] = useRemembered(`playground ${organizationId}`, firstDraft);
  const [answer, setAnswer] = useRemembered<Shown>(`answer ${organizationId}`, undefined);
  const change = (members: Partial<Draft>) => setDraft((last) => ({ ...last, ...members }));
  const value = values[kind];
  const { data: settings } = usePlainQuery(settingsQuery);
  const { data: apps } = useQuery(Admin.method.listApps, { organizationId, pageSize: 100 });
  const url = settings?.ingestUrl ?? serviceUrl;
  const body = kind === "events" ? { events: [value] } : value;
  const [real, trial] = [useRepeatable(), useRepeatable()];
  const send = async (isDryRun: boolean) => {
    const sending: Sending = { isDryRun };
    setAnswer(() => sending);
    // What answers an earlier click would stand there as the answer to this one.
    const show = (shown: Shown) => setAnswer((last) => (last === sending ? shown : last));
    const isMine = whileSessionLasts();
    const repeatable = isDryRun ? trial : real;
    const { idempotencyKey } = repeatable.of([kind, key, body], {});
    try {
      const response = await fetch(`${url}/api/v1/ingest/${kind}`, {
        method: "POST",
        headers: {
          authorization: `Bearer ${key.trim()}`,
          "content-type": "application/json",
          "idempotency-key": idempotencyKey,
          ...(isDryRun ? { "x-dry-run": "true" } : {}),
        },
        body: JSON.stringify(body),
      });
      // An error of the service, or a wait, leaves open whether an earlier click stored something.
      if (response.status < 500 && response.status !== 429) repeatable.answered();
      const requestId = response.headers.get("x-request-id");
      if (requestId !== null && isMine())
        bodies.keep(requestId, bodyOf(body, kind === "events" ? "Events" : "Snapshots"));
      show({ status: response.status, requestId, isDryRun, body: await response.json() });
    } catch (error) {
      show(error as Error);
    }
  };
  const allowed = apps?.apps.flatMap(({ allow }) => allow.map((type) => type.replace(/\*$/, "resolved"))) ?? [];
  const types = [...new Set(allowed)].slice(0, suggestionsMax);
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <p className="soft">{own.lead}</p>
      <div className="grid">
        <form
          className="panel"
          onSubmit={(event) => {
            event.preventDefault();
            const { submitter } = event.nativeEvent as SubmitEvent;
            void send(submitter?.getAttribute("value") === "dry");
          }}
        >
          <Field label={own.kind}>
            {(ids) => (
              <select {...ids} value={kind} onChange={(event) => change({ kind: event.currentTarget.value as Kind })}>
                <option value="events">{own.event}</option>
                <option value="snapshots">{own.snapshot}</option>
              </select>
            )}
          </Field>
          <Field label={own.key} hint={own.keyHint}>
            {(ids) => (
              <input
                {...ids}
                type="password"
                autoComplete="off"
                spellCheck={false}
                required
                pattern="\s*wp_(live|test)_[0-9a-f]{32}\s*"
                title={own.keyForm}
                value={key}
                onChange={(event) => change({ key: event.currentTarget.value })}
              />
            )}
          </Field>
          <SchemaForm
            key={kind}
            desc={kind === "events" ? EventSchema : SnapshotsRequestSchema}
            value={value}
            onChange={(next) => change({ values: { ...values, [kind]: next } })}
            suggestions={{ eventType: types }}
          />
          <div className="dialog-actions">
            <button type="submit" value="dry">
              {own.dryRun}
            </button>
            <button type="submit" value="send" className="primary">
              {own.send}
            </button>
          </div>
        </form>
        <div className="stack top">
          <section className="panel" aria-live="polite">
            <h2>{own.answer}</h2>
            <AnswerView answer={answer} />
          </section>
          <section className="panel">
            <h2>{own.same}</h2>
            {Object.entries(sendCalls({ url, path: kind, body, rpcBody: rpcJson(kind, value) })).map(([name, code]) => (
              <details key={name} open={name === "curl"}>
                <summary>{name}</summary>
                <Code code={code} label={name} />
              </details>
            ))}
          </section>
        </div>
      </div>
    </div>
  );
}

/** The service knows whose request it was, and a dry run that succeeds leaves nothing. */
const isRecorded = ({ status, isDryRun }: Answer) => status !== 401 && !(isDryRun && status < 300 && status !== 207);

function AnswerView({ answer }: { readonly answer: Shown }) {
  if (answer === undefined) return <p className="soft">{own.noAnswer}</p>;
  if (answer instanceof Error) return <p className="problem-text">{own.unreachable}</p>;
  if (!("status" in answer)) return <p className="soft">{own.sending}</p>;
  const { error } = answer.body as { error?: { code: string } };
  return (
    <>
      <p>
        <span className={answer.status < 300 && answer.status !== 207 ? "badge good" : "badge bad"}>
          {answer.status}
        </span>{" "}
        {answer.isDryRun && <span className="badge">{text.requests.dryRun}</span>}{" "}
        {error !== undefined && <ErrorLink code={error.code} />}
      </p>
      {answer.requestId !== null && (
        <p className="small mono">
          {isRecorded(answer) ? (
            <Link href={`/requests/${answer.requestId}`} aria-label={`${text.live.request} ${answer.requestId}`}>
              {answer.requestId}
            </Link>
          ) : (
            answer.requestId
          )}
        </p>
      )}
      <pre className="code" tabIndex={0}>
        {jsonText(answer.body)}
      </pre>
    </>
  );
}
