import { useMutation } from "@connectrpc/connect-query";
import { type AccessToken, Admin, Role } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Days, expiryOf } from "../components/days.tsx";
import { Dialog, Field, Form, useClose, useOpenDialog, useTell } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { SecretDialog } from "../components/secret.tsx";
import { Empty } from "../components/states.tsx";
import type { Column } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { safeText } from "../format.ts";
import { useMay } from "../identity.ts";
import { usePages } from "../pages.ts";
import { useRefresh } from "../refresh.ts";
import { useRepeatable } from "../repeatable.ts";
import { text } from "../text.ts";

const own = text.tokens;

const columns: readonly Column<AccessToken>[] = [
  { name: text.keys.name, of: ({ name }) => safeText(name) },
  { name: own.token, of: ({ hint }) => hint, isMono: true },
  { name: own.role, of: ({ role }) => text.app.role[role] },
  { name: own.bound, of: ({ organizationId: bound = own.all }) => bound, isMono: true },
  { name: text.keys.lastUsed, of: ({ lastUsedAt }) => <Time at={lastUsedAt} /> },
  { name: text.keys.expires, of: ({ expiresAt }) => <Time at={expiresAt} /> },
  { name: text.actions.edit, of: (token) => <TokenActions of={token} />, isUnnamed: true },
];

export default function Tokens({ organizationId }: ScreenProps) {
  const may = useMay();
  const open = useOpenDialog();
  const { data, pages } = usePages(Admin.method.listTokens, {
    ...(may.operate ? {} : { organizationId }),
    pageSize: 50,
  });
  return (
    <div className="stack">
      <div className="row">
        <h1>{own.title}</h1>
        <span className="push" />
        <button type="button" className="primary" onClick={() => open(<NewToken organizationId={organizationId} />)}>
          {own.create}
        </button>
      </div>
      <p className="soft">{own.lead}</p>
      <Listed
        label={own.title}
        pages={pages}
        rows={data?.tokens ?? []}
        columns={columns}
        keyOf={({ id }) => id}
        empty={<Empty title={own.none} />}
      />
    </div>
  );
}

function NewToken({ organizationId }: ScreenProps) {
  const may = useMay();
  const tell = useTell();
  const refresh = useRefresh();
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.createToken, {
    onSuccess({ secret }) {
      tell(<SecretDialog title={own.secretTitle} secret={secret} />);
      void refresh();
    },
  });
  const submit = (form: FormData) => {
    const role: Role = Number(form.get("role"));
    mutate(
      repeatable.of(form, {
        name: String(form.get("name")),
        role,
        ...(role === Role.OPERATOR ? {} : { organizationId }),
        ...expiryOf(form),
      }),
    );
  };
  const roles = may.operate ? [Role.VIEWER, Role.MANAGER, Role.OPERATOR] : [Role.VIEWER, Role.MANAGER];
  return (
    <Dialog title={own.create}>
      <Form submit={text.actions.create} isPending={isPending} error={error} onSubmit={submit}>
        <Field label={text.keys.name}>
          {(ids) => <input {...ids} name="name" required maxLength={200} autoFocus />}
        </Field>
        <Field label={own.role} hint={own.roleHint}>
          {(ids) => (
            <select {...ids} name="role">
              {roles.map((role) => (
                <option key={role} value={role}>
                  {text.app.role[role]}
                </option>
              ))}
            </select>
          )}
        </Field>
        <Days days={90} />
      </Form>
    </Dialog>
  );
}

function TokenActions({ of: token }: { readonly of: AccessToken }) {
  const open = useOpenDialog();
  const { name, revokedAt, expiresAt } = token;
  if (revokedAt !== undefined) return <span className="badge bad">{text.keys.statuses[4]}</span>;
  if (expiresAt !== undefined && Number(expiresAt.seconds) * 1000 <= Date.now()) {
    return <span className="badge">{text.keys.statuses[3]}</span>;
  }
  return (
    <button
      type="button"
      className="danger"
      onClick={() => open(<Revoke of={token} />)}
      aria-label={`${text.keys.revoke} ${safeText(name)}`}
    >
      {text.keys.revoke}
    </button>
  );
}

function Revoke({ of: { id, name } }: { readonly of: AccessToken }) {
  const close = useClose();
  const refresh = useRefresh();
  const { mutate, isPending, error } = useMutation(Admin.method.revokeToken, {
    onSuccess: () => refresh().then(close),
  });
  return (
    <Dialog title={text.keys.revokeTitle(safeText(name))}>
      <p>{text.keys.revokeDetail}</p>
      <Form
        submit={text.keys.revoke}
        isDangerous
        isPending={isPending}
        error={error}
        onSubmit={() => mutate({ tokenId: id })}
      />
    </Dialog>
  );
}
