import { useInfiniteQuery } from "@connectrpc/connect-query";
import { useState } from "react";
import { Admin, type AuditEntry } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Field } from "../components/dialog.tsx";
import { Listed } from "../components/listed.tsx";
import { Empty } from "../components/states.tsx";
import type { Column } from "../components/table.tsx";
import { Time } from "../components/time.tsx";
import { safeText } from "../format.ts";
import { byPageToken } from "../pages.ts";
import { text } from "../text.ts";

const own = text.audit;

/** What changed, a line for each member. */
function Difference({ before, after }: AuditEntry) {
  const names = [...new Set([...Object.keys(before ?? {}), ...Object.keys(after ?? {})])];
  const shown = (value: unknown) => (value === undefined ? "–" : safeText(JSON.stringify(value)));
  return (
    <details>
      <summary>{own.changes(names.length)}</summary>
      <ul className="changes mono small">
        {names.map((name) => (
          <li key={name}>
            {name}: {before !== undefined && <del>{shown(before[name])}</del>}{" "}
            {after !== undefined && <ins>{shown(after[name])}</ins>}
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
  const [actor, setActor] = useState("");
  const list = useInfiniteQuery(
    Admin.method.listAuditEntries,
    { organizationId, pageSize: 50, pageToken: "", ...(actor === "" ? {} : { actor }) },
    byPageToken,
  );
  const entries = list.data?.pages.flatMap((page) => page.entries) ?? [];
  return (
    <div className="stack">
      <h1>{own.title}</h1>
      <Field label={own.actor} hint={own.actorHint}>
        {(ids) => (
          <input
            {...ids}
            value={actor}
            spellCheck={false}
            onChange={(event) => setActor(event.currentTarget.value.trim())}
          />
        )}
      </Field>
      <Listed
        label={own.title}
        list={list}
        rows={entries}
        columns={columns}
        keyOf={({ id }) => id}
        empty={<Empty title={own.none} />}
      />
    </div>
  );
}
