import { useMutation, useQuery } from "@connectrpc/connect-query";
import { useQuery as usePlainQuery } from "@tanstack/react-query";
import { useState } from "react";
import {
  Admin,
  type App,
  type Key,
  type KeyStatus,
  Scope,
  KeyStatus as Status,
} from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { problemOf } from "../api.ts";
import type { ScreenProps } from "../app.tsx";
import { readCalls, sendCalls } from "../calls.ts";
import { Code } from "../components/copy.tsx";
import { Days, expiryOf } from "../components/days.tsx";
import { Check, Dialog, Field, Form, useClose, useOpenDialog, useTell } from "../components/dialog.tsx";
import { Listed, PageStates } from "../components/listed.tsx";
import { SecretDialog } from "../components/secret.tsx";
import { Empty, Read } from "../components/states.tsx";
import type { Column } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { useToast } from "../components/toast.tsx";
import { safeText } from "../format.ts";
import { useFoundApps } from "../found-apps.ts";
import { useMay } from "../identity.ts";
import { useKept } from "../kept.ts";
import { usePages } from "../pages.ts";
import { useRefresh } from "../refresh.ts";
import { useRepeatable } from "../repeatable.ts";
import { settingsQuery } from "../settings.ts";
import { useSettled } from "../settled.ts";
import { text } from "../text.ts";

const own = text.keys;

export default function Keys({ organizationId }: ScreenProps) {
  const may = useMay();
  const open = useOpenDialog();
  const [part, setPart] = useKept("part", "");
  const { data, pages } = usePages(Admin.method.listApps, { organizationId, pageSize: 20 });
  const apps = data?.apps ?? [];
  const hasNone = !pages.isLoading && apps.length === 0 && pages.page === 1;
  const add = may.change && (
    <button type="button" className="primary" onClick={() => open(<NewApp organizationId={organizationId} />)}>
      {own.newApp}
    </button>
  );
  return (
    <div className="stack">
      <div className="row">
        <h1>{own.title}</h1>
        <span className="push" />
        {!hasNone && add}
      </div>
      {(pages.page > 1 || !pages.isLast || part !== "") && (
        <Field label={own.findApp}>
          {(ids) => (
            <input
              {...ids}
              type="search"
              value={part}
              spellCheck={false}
              onChange={(event) => setPart(event.currentTarget.value)}
            />
          )}
        </Field>
      )}
      {part.trim() === "" ? (
        <PageStates
          pages={pages}
          rows={apps}
          empty={
            <Empty title={own.noApps} detail={own.noAppsDetail}>
              {add}
            </Empty>
          }
        >
          {apps.map((app) => (
            <AppPanel key={app.id} app={app} />
          ))}
        </PageStates>
      ) : (
        <FoundApps organizationId={organizationId} part={part.trim()} />
      )}
    </div>
  );
}

const foundMax = 10;

function FoundApps({ organizationId, part }: ScreenProps & { readonly part: string }) {
  const { isLooking, ...found } = useFoundApps(organizationId, useSettled(part));
  return (
    <Read of={found}>
      {(apps) => (
        <>
          <p className="soft" role="status">
            {isLooking ? own.lookingForApps : own.foundApps(apps.length, Math.min(apps.length, foundMax))}
          </p>
          {apps.slice(0, foundMax).map((app) => (
            <AppPanel key={app.id} app={app} />
          ))}
        </>
      )}
    </Read>
  );
}

const linesOf = (value: FormDataEntryValue | null): string[] =>
  String(value ?? "")
    .split(/[\s,]+/)
    .filter((line) => line !== "");

function NewApp({ organizationId }: ScreenProps) {
  const close = useClose();
  const refresh = useRefresh();
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.createApp, {
    onSuccess: () => refresh().then(close),
  });
  const submit = (data: FormData) =>
    mutate(
      repeatable.of(data, {
        organizationId,
        slug: String(data.get("slug")),
        ...(data.get("name") ? { name: String(data.get("name")) } : {}),
        allow: linesOf(data.get("allow")),
      }),
    );
  return (
    <Dialog title={own.newApp}>
      <Form submit={text.actions.create} isPending={isPending} error={error} onSubmit={submit}>
        <Field label={own.slug} hint={own.slugHint}>
          {(ids) => <input {...ids} name="slug" required autoFocus />}
        </Field>
        <Field label={own.name}>{(ids) => <input {...ids} name="name" />}</Field>
        <Field label={own.allow} hint={own.allowHint}>
          {(ids) => <textarea {...ids} name="allow" defaultValue={"ticket.*"} spellCheck={false} />}
        </Field>
      </Form>
    </Dialog>
  );
}

function AppPanel({ app }: { readonly app: App }) {
  const may = useMay();
  const open = useOpenDialog();
  return (
    <section className="panel" aria-labelledby={app.id}>
      <div className="row">
        <h2 id={app.id}>{safeText(app.name)}</h2>
        <span className="mono soft">{app.slug}</span>
        <span className="push" />
        {may.change && (
          <>
            <button type="button" onClick={() => open(<Whitelist app={app} />)}>
              {own.editWhitelist}
            </button>
            <button type="button" className="primary" onClick={() => open(<NewKey app={app} />)}>
              {own.newKey}
            </button>
          </>
        )}
      </div>
      {app.allow.length === 0 ? <p className="soft">{own.noTypes}</p> : <Types allow={app.allow} />}
      <KeyTable app={app} />
    </section>
  );
}

const typesMax = 30;

/** The whitelist of an app: its beginning, and the others if asked. */
function Types({ allow }: Pick<App, "allow">) {
  const [isAll, setAll] = useState(false);
  const left = allow.length - typesMax;
  return (
    <>
      <ul className="chips" aria-label={own.whitelist}>
        {(isAll ? allow : allow.slice(0, typesMax)).map((type) => (
          <li key={type}>{type}</li>
        ))}
      </ul>
      {left > 0 && (
        <div>
          <button type="button" aria-expanded={isAll} onClick={() => setAll(!isAll)}>
            {isAll ? own.fewerTypes : own.moreTypes(left)}
          </button>
        </div>
      )}
    </>
  );
}

function KeyTable({ app }: { readonly app: App }) {
  const { data, pages } = usePages(Admin.method.listKeys, { appId: app.id, pageSize: 20 }, { name: app.id });
  return (
    <Listed
      isWithin
      label={`${own.title}: ${safeText(app.name)}`}
      pages={pages}
      columns={keyColumns}
      rows={data?.keys ?? []}
      keyOf={({ id }) => id}
      empty={<p className="soft">{own.noKeys}</p>}
    />
  );
}

const badges: Readonly<Record<KeyStatus, string>> = {
  [Status.UNSPECIFIED]: "badge",
  [Status.ACTIVE]: "badge good",
  [Status.ROTATING]: "badge warn",
  [Status.EXPIRED]: "badge",
  [Status.REVOKED]: "badge bad",
};

const isUsable = ({ status }: Key) => status === Status.ACTIVE || status === Status.ROTATING;
const nameOf = ({ name, hint }: Key) => safeText(name || hint);

const keyColumns: readonly Column<Key>[] = [
  {
    name: own.name,
    of: ({ name, test }) => (
      <>
        {safeText(name)} {test && <span className="badge">{own.test}</span>}
      </>
    ),
  },
  { name: own.hint, of: ({ hint }) => hint, isMono: true },
  { name: own.status, of: ({ status }) => <span className={badges[status]}>{own.statuses[status]}</span> },
  { name: own.scopes, of: ({ scopes }) => scopes.map((scope) => own.scope[scope]).join(", ") },
  { name: own.lastUsed, of: ({ lastUsedAt }) => <Time at={lastUsedAt} /> },
  { name: own.expires, of: ({ expiresAt }) => <Time at={expiresAt} /> },
  { name: text.actions.edit, of: (key) => <KeyActions of={key} />, isUnnamed: true },
];

function KeyActions({ of: key }: { readonly of: Key }) {
  const may = useMay();
  const open = useOpenDialog();
  if (!may.change || !isUsable(key)) return null;
  return (
    <div className="row">
      {key.status === Status.ACTIVE && (
        <button type="button" onClick={() => open(<Rotate of={key} />)} aria-label={`${own.rotate} ${nameOf(key)}`}>
          {own.rotate}
        </button>
      )}
      <button
        type="button"
        className="danger"
        onClick={() => open(<Revoke of={key} />)}
        aria-label={`${own.revoke} ${nameOf(key)}`}
      >
        {own.revoke}
      </button>
    </div>
  );
}

function NewKey({ app }: { readonly app: App }) {
  const tell = useTell();
  const refresh = useRefresh();
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.createKey, {
    onSuccess({ secret, key }) {
      tell(<Secret secret={secret} scopes={key?.scopes ?? []} app={app} />);
      void refresh();
    },
  });
  const [isUseless, setUseless] = useState(false);
  const submit = (form: FormData) => {
    const name = String(form.get("name")).trim();
    const scopes = [...(form.get("send") ? [Scope.INGEST] : []), ...(form.get("read") ? [Scope.READ] : [])];
    // The API would make a key that sends.
    setUseless(scopes.length === 0);
    if (scopes.length === 0) return;
    mutate(
      repeatable.of(form, {
        appId: app.id,
        ...(name === "" ? {} : { name }),
        scopes,
        test: form.get("test") !== null,
        ...expiryOf(form),
      }),
    );
  };
  return (
    <Dialog title={own.createTitle}>
      <Form submit={text.actions.create} isPending={isPending} error={error} onSubmit={submit}>
        <Field label={own.keyName} hint={own.keyNameHint}>
          {(ids) => <input {...ids} name="name" autoFocus maxLength={200} />}
        </Field>
        <fieldset>
          <legend>{own.scopes}</legend>
          <Check name="send" label={own.send} isChecked />
          <Check name="read" label={own.read} />
          {isUseless && (
            <p className="problem-text" role="alert">
              {own.noScope}
            </p>
          )}
        </fieldset>
        <Days />
        <Check name="test" label={own.testKey} />
      </Form>
    </Dialog>
  );
}

/** The event type of the example call: one that the app may send. */
const exampleType = (app: App | undefined) => (app?.allow[0] ?? "ticket.*").replace(/\*$/, "resolved");

interface SecretProps {
  readonly secret: string | undefined;
  readonly scopes: readonly Scope[];
  /** Absent if it could not be read; the secret is shown all the same. */
  readonly app: App | undefined;
}

/** A new key, once, with a first call that the key may make. */
const Secret = (props: SecretProps) => (
  <SecretDialog title={own.secretTitle} secret={props.secret}>
    <FirstCall {...props} />
  </SecretDialog>
);

function FirstCall({ secret = "", scopes, app }: SecretProps) {
  const { data: settings } = usePlainQuery(settingsQuery);
  if (settings === undefined) return null;
  const sends = scopes.includes(Scope.INGEST);
  const call = { url: settings.ingestUrl, key: secret };
  const event = { eventType: exampleType(app), category: "other", actor: { externalId: "user-42" } };
  const calls = sends
    ? sendCalls({
        ...call,
        path: "events",
        body: { events: [event] },
        rpcBody: { events: [{ ...event, category: "EVENT_CATEGORY_OTHER" }] },
      })
    : readCalls(call);
  return (
    <>
      <h3>{sends ? own.firstCall : own.firstRead}</h3>
      <Code code={calls.curl} label="curl" />
      <Code code={calls.grpcurl} label="gRPC" />
      <Code code={calls.TypeScript} label="TypeScript" />
    </>
  );
}

function Revoke({ of: key }: { readonly of: Key }) {
  const close = useClose();
  const say = useToast();
  const refresh = useRefresh();
  const { mutate, isPending, error } = useMutation(Admin.method.revokeKey, {
    onSuccess: async ({ actedAfterMs }) => {
      say(actedAfterMs === undefined ? own.revokedUnconfirmed : own.revoked(Math.round(actedAfterMs)));
      await refresh();
      close();
    },
  });
  return (
    <Dialog title={own.revokeTitle(nameOf(key))}>
      <p>{own.revokeDetail}</p>
      <Form
        submit={own.revoke}
        isDangerous
        isPending={isPending}
        error={error}
        onSubmit={() => mutate({ keyId: key.id, wait: true })}
      />
    </Dialog>
  );
}

function Rotate({ of: key }: { readonly of: Key }) {
  const tell = useTell();
  const refresh = useRefresh();
  const repeatable = useRepeatable();
  const { data: app } = useQuery(Admin.method.getApp, { appId: key.appId });
  const { mutate, isPending, error } = useMutation(Admin.method.rotateKey, {
    onSuccess({ secret }) {
      tell(<Secret secret={secret} scopes={key.scopes} app={app} />);
      void refresh();
    },
  });
  const submit = (form: FormData) =>
    mutate(repeatable.of(form, { keyId: key.id, grace: { seconds: BigInt(String(form.get("grace"))), nanos: 0 } }));
  return (
    <Dialog title={own.rotateTitle(nameOf(key))}>
      <Form submit={own.rotate} isPending={isPending} error={error} onSubmit={submit}>
        <Field label={own.rotateDetail}>
          {(ids) => (
            <select {...ids} name="grace" defaultValue="86400">
              {Object.entries(own.graces).map(([seconds, name]) => (
                <option key={seconds} value={seconds}>
                  {name}
                </option>
              ))}
            </select>
          )}
        </Field>
      </Form>
    </Dialog>
  );
}

function Whitelist({ app }: { readonly app: App }) {
  const close = useClose();
  const refresh = useRefresh();
  const [allow, setAllow] = useState(app.allow.join("\n"));
  const types = linesOf(allow);
  // One preview of an app runs at a time, so a busy one is tried again.
  const preview = useQuery(Admin.method.previewAllow, { appId: app.id, allow: linesOf(useSettled(allow)) });
  const { mutate, isPending, error } = useMutation(Admin.method.updateApp, {
    onSuccess: () => refresh().then(close),
  });
  const save = () => mutate({ appId: app.id, allow: types, updateMask: { paths: ["allow"] }, etag: app.etag });
  return (
    <Dialog title={own.editWhitelist}>
      <Form submit={text.actions.save} isPending={isPending} error={error} onSubmit={save}>
        <Field label={own.allow} hint={own.allowHint}>
          {(ids) => (
            <textarea
              {...ids}
              value={allow}
              rows={Math.min(16, types.length + 1)}
              spellCheck={false}
              autoFocus
              onChange={(event) => setAllow(event.currentTarget.value)}
            />
          )}
        </Field>
        <p className={preview.error === null ? "soft" : "problem-text"} role="status">
          {preview.error !== null
            ? problemOf(preview.error).message
            : preview.data === undefined
              ? own.previewing
              : previewText(preview.data)}
        </p>
      </Form>
    </Dialog>
  );
}

const previewText = ({ accepted, refused }: { readonly accepted: number; readonly refused: number }) =>
  accepted + refused === 0 ? own.previewNone : own.preview(accepted, accepted + refused);
