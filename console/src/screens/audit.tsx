import { Admin, type AuditEntry } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Field } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { Empty } from "../components/states.tsx";
import type { Column } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { safeText } from "../format.ts";
import { useRemembered } from "../kept.ts";
import { usePages } from "../pages.ts";
import { useSettled } from "../settled.ts";
import { text } from "../text.ts";

const own = text.audit;

const shown = (value: unknown) => (value === undefined ? "–" : safeText(JSON.stringify(value)));

/** The parts of a value that another one lacks: the entries of a list, else the whole. */
function lacking(value: unknown, other: unknown): unknown {
  if (!Array.isArray(value) || !Array.isArray(other)) return value;
  const known = new Set(other.map((one) => JSON.stringify(one)));
  return value.filter((one) => !known.has(JSON.stringify(one)));
}

/** What changed, a line for each member. A list shows the entries that went and came. */
function Difference({ before, after }: AuditEntry) {
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];
  return (
    <details>
      <summary>{own.changes(names.length)}</summary>
      <ul className="changes mono small">
        {names.map((name) => (
          <li key={name}>
            {name}: {before !== undefined && <del>{shown(lacking(before[name], after?.[name]))}</del>}{" "}
            {after !== undefined && <ins>{shown(lacking(after[name], before?.[name]))}</ins>}
          </li>
        ))}
      </ul>
    </details>
  );
}

const columns: readonly Column<AuditEntry>[] = [
  { name: own.when, of: ({ at }) => <Time at={at} /> },
  {
    name: own.who,
    of: ({ actor, peer }) => (
      <>
        {safeText(actor?.name ?? "")} <span className="soft small">{peer}</span>
      </>
    ),
  },
  { name: own.what, of: ({ action }) => action },
  { name: own.target, of: ({ target }) => target, isMono: true },
  { name: own.change, of: (entry) => <Difference {...entry} /> },
];

export default function Audit({ organizationId }: ScreenProps) {
  const [actor, setActor] = useRemembered(`audit ${organizationId}`, "");
  const settled = useSettled(actor);
  const { data, pages } = usePages(
    Admin.method.listAuditEntries,
    { organizationId, pageSize: 50, ...(settled === "" ? {} : { actor: settled }) },
    { isPersonal: settled !== "" },
  );
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <Field label={own.actor} hint={own.actorHint}>
        {(ids) => (
          <input
            {...ids}
            value={actor}
            spellCheck={false}
            onChange={({ currentTarget: { value } }) => setActor(() => value.trim())}
          />
        )}
      </Field>
      <Listed
        label={own.title}
        pages={pages}
        rows={data?.entries ?? []}
        columns={columns}
        keyOf={({ id }) => id}
        empty={<Empty title={own.none} />}
      />
    </div>
  );
}
