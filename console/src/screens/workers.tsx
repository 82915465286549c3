import { useMutation, useQuery } from "@connectrpc/connect-query";
import type { SubmitEventHandler } from "react";
import { Link, useLocation } from "wouter";
import { useHashLocation } from "wouter/use-hash-location";
import { Admin, ErasureState, type Worker } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { problemOf } from "../api.ts";
import type { ScreenProps } from "../app.tsx";
import { Close, Dialog, Field, Form, useClose, useOpenDialog, useTell } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { Empty, Read } from "../components/states.tsx";
import type { Column } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { useToast } from "../components/toast.tsx";
import { count, safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { useRemembered } from "../kept.ts";
import { usePages } from "../pages.ts";
import { useRefresh } from "../refresh.ts";
import { useRepeatable } from "../repeatable.ts";
import { text } from "../text.ts";
import { History } from "./history.tsx";

const own = text.workers;

const nameOf = ({ displayName, id }: Pick<Worker, "displayName" | "id">) => safeText(displayName || id);
const linkText = ({ connection, externalId }: Worker["links"][number]) =>
  safeText(`${connection.replace(/^custom:/, "")}/${externalId}`);

const linksMax = 3;
const linksText = (links: Worker["links"]) =>
  [...links.slice(0, linksMax).map(linkText), ...(links.length > linksMax ? [`+${links.length - linksMax}`] : [])].join(
    ", ",
  );

/** A viewer sees no emails and external ids, so it has no columns for them. */
const columns: readonly (Column<Worker> & { readonly isPersonal?: boolean })[] = [
  { name: own.name, of: (worker) => <Link href={`/workers/${worker.id}`}>{nameOf(worker)}</Link> },
  { name: own.email, of: ({ email = "" }) => safeText(email), isPersonal: true },
  { name: own.links, of: ({ links }) => linksText(links), isMono: true, isPersonal: true },
  { name: own.created, of: ({ createdAt }) => <Time at={createdAt} /> },
];

interface Search {
  readonly by: "name" | "email" | "externalId";
  readonly value: string;
}

export default function Workers({ organizationId }: ScreenProps) {
  const may = useMay();
  const [search, setSearch] = useRemembered<Search | undefined>(`workers ${organizationId}`, undefined);
  const { data, pages } = usePages(
    Admin.method.listWorkers,
    { organizationId, pageSize: 50, ...(search === undefined ? {} : { [search.by]: search.value }) },
    { isPersonal: search !== undefined },
  );
  const submit: SubmitEventHandler<HTMLFormElement> = (event) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const value = String(form.get("value")).trim();
    setSearch(() => (value === "" ? undefined : { by: form.get("by") as Search["by"], value }));
  };
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <form className="row" role="search" onSubmit={submit}>
        <Field label={own.by}>
          {(ids) => (
            <select {...ids} name="by" defaultValue={search?.by}>
              <option value="name">{own.byName}</option>
              {may.change && <option value="email">{own.email}</option>}
              {may.change && <option value="externalId">{own.externalId}</option>}
            </select>
          )}
        </Field>
        <Field label={own.find}>
          {(ids) => <input {...ids} name="value" type="search" spellCheck={false} defaultValue={search?.value} />}
        </Field>
        <button type="submit">{own.search}</button>
      </form>
      <Listed
        label={own.title}
        pages={pages}
        rows={data?.workers ?? []}
        columns={columns.filter(({ isPersonal = false }) => may.change || !isPersonal)}
        keyOf={({ id }) => id}
        empty={<Empty title={search === undefined ? own.none : own.noneFound} detail={own.noneDetail} />}
      />
    </div>
  );
}

interface WorkerProps extends ScreenProps {
  readonly workerId: string;
}

export function WorkerPage({ organizationId, workerId }: WorkerProps) {
  const worker = useQuery(Admin.method.getWorker, { workerId });
  return (
    <Read of={worker}>
      {(found) => (
        <>
          <About worker={found} workerId={workerId} />
          <History organizationId={organizationId} workerId={found.id} />
        </>
      )}
    </Read>
  );
}

interface ChangeProps {
  readonly worker: Worker;
}

/** @param workerId of the page: that of the worker, or of one that was merged into it. */
function About({ worker, workerId }: ChangeProps & Pick<WorkerProps, "workerId">) {
  const may = useMay();
  const open = useOpenDialog();
  const [page] = useHashLocation();
  return (
    <>
      <p>
        <Link href="/workers">{own.title}</Link>
      </p>
      <div className="row">
        <h1>{nameOf(worker)}</h1>
        <span className="push" />
        {may.change && (
          <div className="row">
            <button type="button" onClick={() => open(<Rename worker={worker} />)}>
              {own.rename}
            </button>
            <button type="button" onClick={() => open(<Merge worker={worker} />)}>
              {own.merge}
            </button>
            <button type="button" className="danger" onClick={() => open(<Erase worker={worker} page={page} />)}>
              {own.erase}
            </button>
          </div>
        )}
      </div>
      {worker.mergedInto !== undefined && <p className="notice warn">{own.mergedInto(workerId, worker.id)}</p>}
      <section className="panel">
        <dl className="facts">
          <div>
            <dt>{own.id}</dt>
            <dd className="mono">{worker.id}</dd>
          </div>
          {worker.email !== undefined && (
            <div>
              <dt>{own.email}</dt>
              <dd>{safeText(worker.email)}</dd>
            </div>
          )}
          {worker.links.map((link) => (
            <div key={`${link.connection} ${link.externalId}`}>
              <dt>{safeText(link.connection.replace(/^custom:/, ""))}</dt>
              <dd className="mono">{safeText(link.externalId)}</dd>
            </div>
          ))}
          <div>
            <dt>{own.created}</dt>
            <dd>
              <Time at={worker.createdAt} />
            </dd>
          </div>
        </dl>
      </section>
      {worker.cards.length > 0 && <Cards cards={worker.cards} />}
    </>
  );
}

/** A metric as REST writes it: a number, a label, or a value with its unit. */
function metricText(metric: unknown): string {
  if (typeof metric === "number") return count(metric);
  if (typeof metric !== "object" || metric === null) return safeText(String(metric));
  const { value, unit = "", label = "" } = metric as { value?: number; unit?: string; label?: string };
  return safeText([value === undefined ? "" : count(value), unit, label].filter((part) => part !== "").join(" "));
}

const Cards = ({ cards }: Pick<Worker, "cards">) => (
  <div className="grid">
    {cards.map((card) => (
      <section key={`${card.appId} ${card.snapshotType}`} className="panel">
        <h2 className="mono">{safeText(card.snapshotType)}</h2>
        <p className="small soft">
          <Time at={card.timestamp} />
        </p>
        <dl className="facts">
          {Object.entries(card.metrics ?? {}).map(([name, metric]) => (
            <div key={name}>
              <dt>{safeText(name)}</dt>
              <dd>{metricText(metric)}</dd>
            </div>
          ))}
        </dl>
      </section>
    ))}
  </div>
);

/** The place of the list: dialogs lie outside the organisation's part of the address. */
const listOf = ({ organizationId }: Worker) => `/o/${organizationId}/workers`;

function Rename({ worker }: ChangeProps) {
  const close = useClose();
  const refresh = useRefresh();
  const { mutate, isPending, error } = useMutation(Admin.method.updateWorker, {
    onSuccess: () => refresh().then(close),
  });
  const submit = (form: FormData) =>
    mutate({ workerId: worker.id, displayName: String(form.get("name")), etag: worker.etag });
  return (
    <Dialog title={own.renameTitle(nameOf(worker))}>
      <Form submit={text.actions.save} isPending={isPending} error={error} onSubmit={submit}>
        <Field label={own.name}>
          {(ids) => <input {...ids} name="name" defaultValue={worker.displayName} maxLength={200} required autoFocus />}
        </Field>
      </Form>
    </Dialog>
  );
}

function Merge({ worker }: ChangeProps) {
  const refresh = useRefresh();
  const [, navigate] = useLocation();
  const repeatable = useRepeatable();
  const close = useClose();
  const { mutate, isPending, error } = useMutation(Admin.method.mergeWorkers, { onSuccess: refresh });
  const show = ({ id }: Worker) => {
    close();
    navigate(`${listOf(worker)}/${id}`);
  };
  const submit = (form: FormData) =>
    mutate(
      repeatable.of(form, { workerId: worker.id, intoWorkerId: String(form.get("into")).trim() }),
      // Only if the dialog is still open: its user may have gone elsewhere.
      { onSuccess: show },
    );
  return (
    <Dialog title={own.mergeTitle(nameOf(worker))}>
      <p>{own.mergeDetail}</p>
      <Form submit={own.merge} isDangerous isPending={isPending} error={error} onSubmit={submit}>
        <Field label={own.into}>
          {(ids) => <input {...ids} name="into" placeholder="wrk_…" spellCheck={false} required autoFocus />}
        </Field>
      </Form>
    </Dialog>
  );
}

interface EraseProps extends ChangeProps {
  /** The place of the worker's page. */
  readonly page: string;
}

function Erase({ worker, page }: EraseProps) {
  const tell = useTell();
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.eraseWorker, {
    onSuccess: ({ id }) => tell(<Receipt erasureId={id} worker={worker} page={page} />),
  });
  return (
    <Dialog title={own.eraseTitle(nameOf(worker))}>
      <p>{own.eraseDetail}</p>
      <Form
        submit={own.erase}
        isDangerous
        isPending={isPending}
        error={error}
        onSubmit={(form) => mutate(repeatable.of(form, { workerId: worker.id }))}
      />
    </Dialog>
  );
}

function Receipt({ erasureId, worker, page }: EraseProps & { readonly erasureId: string }) {
  const close = useClose();
  const refresh = useRefresh();
  const say = useToast();
  const [location, navigate] = useLocation();
  const { data: receipt, error } = useQuery(
    Admin.method.getErasure,
    { erasureId },
    { refetchInterval: ({ state }) => (state.data?.state === ErasureState.DONE ? false : 1_000) },
  );
  const isDone = receipt?.state === ErasureState.DONE;
  const leave = () => {
    close();
    if (isDone) say(own.erased);
    // Its user may have gone elsewhere.
    if (location === page) navigate(listOf(worker));
    void refresh();
  };
  return (
    <Dialog title={isDone ? own.receipt : own.erasing} onClose={leave}>
      <p className="mono">{erasureId}</p>
      {error !== null && (
        <p className="problem-text" role="alert">
          {problemOf(error).message}
        </p>
      )}
      <dl className="facts">
        {Object.entries(own.counts).map(([name, label]) => (
          <div key={name}>
            <dt>{label}</dt>
            <dd>{count(Number(receipt?.counts?.[name as keyof typeof own.counts] ?? 0))}</dd>
          </div>
        ))}
      </dl>
      <Close onClick={leave} />
    </Dialog>
  );
}
