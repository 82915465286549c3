import { useMutation } from "@connectrpc/connect-query";
import { Link } from "wouter";
import { Admin, type Organization } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { Check, Dialog, Field, Form, useClose, useOpenDialog } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { Empty } from "../components/states.tsx";
import { Time } from "../components/time.tsx";
import { count, safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { usePages } from "../pages.ts";
import { useRefresh } from "../refresh.ts";
import { useRepeatable } from "../repeatable.ts";
import { text } from "../text.ts";

const own = text.organizations;

export default function Organizations() {
  const may = useMay();
  const open = useOpenDialog();
  const { data, pages } = usePages(Admin.method.listOrganizations, { pageSize: 50 });
  return (
    <div className="stack">
      <div className="row">
        <h1>{own.title}</h1>
        <span className="push" />
        {may.operate && (
          <button type="button" className="primary" onClick={() => open(<Edit />)}>
            {own.create}
          </button>
        )}
      </div>
      <Listed
        label={own.title}
        pages={pages}
        rows={data?.organizations ?? []}
        keyOf={({ id }) => id}
        empty={<Empty title={text.app.noOrganization} />}
        columns={[
          {
            name: text.keys.name,
            of: ({ id, name }) => <Link href={`~/o/${id}`}>{safeText(name)}</Link>,
          },
          { name: own.quota, of: ({ quotaEventsPerMonth }) => count(quotaEventsPerMonth), isNumber: true },
          { name: own.keyRate, of: ({ keyRequestsPerSecond }) => count(keyRequestsPerSecond), isNumber: true },
          {
            name: own.rate,
            of: ({ organizationRequestsPerSecond }) => count(organizationRequestsPerSecond),
            isNumber: true,
          },
          {
            name: own.api,
            of: ({ api }) => <span className={api ? "badge good" : "badge bad"}>{api ? own.on : own.off}</span>,
          },
          { name: text.keys.created, of: ({ createdAt }) => <Time at={createdAt} /> },
          {
            name: text.actions.edit,
            isUnnamed: true,
            of: (organization) =>
              may.change && (
                <button
                  type="button"
                  aria-label={`${text.actions.edit} ${safeText(organization.name)}`}
                  onClick={() => open(<Edit of={organization} />)}
                >
                  {text.actions.edit}
                </button>
              ),
          },
        ]}
      />
    </div>
  );
}

/** Makes an organisation, or changes one. */
export function Edit({ of }: { readonly of?: Organization }) {
  const may = useMay();
  const refresh = useRefresh();
  const repeatable = useRepeatable();
  const close = useClose();
  const onSuccess = () => refresh().then(close);
  const create = useMutation(Admin.method.createOrganization, { onSuccess });
  const update = useMutation(Admin.method.updateOrganization, { onSuccess });
  const submit = (form: FormData) => {
    const plan = may.operate
      ? {
          api: form.get("api") !== null,
          quotaEventsPerMonth: Number(form.get("quota")),
          keyRequestsPerSecond: Number(form.get("keyRate")),
          organizationRequestsPerSecond: Number(form.get("rate")),
        }
      : {};
    const settings = { name: String(form.get("name")), ...plan };
    if (of === undefined) create.mutate(repeatable.of(form, settings));
    else update.mutate({ organizationId: of.id, etag: of.etag, ...settings });
  };
  const number = (name: string, label: string, value: number) => (
    <Field label={label}>
      {(ids) => (
        <input
          {...ids}
          name={name}
          type="number"
          min={name === "quota" ? 0 : 1}
          step="any"
          defaultValue={value}
          required
        />
      )}
    </Field>
  );
  return (
    <Dialog title={of === undefined ? own.create : safeText(of.name)}>
      <Form
        submit={of === undefined ? text.actions.create : text.actions.save}
        isPending={create.isPending || update.isPending}
        error={create.error ?? update.error}
        onSubmit={submit}
      >
        <Field label={text.keys.name}>
          {(ids) => <input {...ids} name="name" defaultValue={of?.name} maxLength={200} required autoFocus />}
        </Field>
        {may.operate && (
          <>
            {number("quota", own.quota, of?.quotaEventsPerMonth ?? 1_000_000)}
            {number("keyRate", own.keyRate, of?.keyRequestsPerSecond ?? 60)}
            {number("rate", own.rate, of?.organizationRequestsPerSecond ?? 600)}
            <Check name="api" label={own.api} isChecked={of?.api ?? true} />
          </>
        )}
      </Form>
    </Dialog>
  );
}
