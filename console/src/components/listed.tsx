import type { ReactNode } from "react";
import { Failed, Loading } from "./states.tsx";
import { type Column, More, Table } from "./table.tsx";

interface ListedProps<Row> {
  readonly label: string;
  readonly list: Parameters<typeof More>[0]["list"] & {
    readonly data: unknown;
    readonly error: unknown;
    readonly refetch: () => unknown;
  };
  readonly rows: readonly Row[];
  readonly columns: readonly Column<Row>[];
  readonly keyOf: (row: Row) => string;
  /** Stands where the rows would be if there are none. */
  readonly empty: ReactNode;
}

/** A list in all its states: it loads, it failed, it is empty, it has rows and maybe a next page. */
export function Listed<Row>({ label, list, rows, columns, keyOf, empty }: ListedProps<Row>) {
  if (list.error !== null) return <Failed error={list.error} retry={list.refetch} />;
  if (list.data === undefined) return <Loading />;
  if (rows.length === 0) return empty;
  return (
    <>
      <section className="panel">
        <Table label={label} columns={columns} rows={rows} keyOf={keyOf} />
      </section>
      <More list={list} />
    </>
  );
}
