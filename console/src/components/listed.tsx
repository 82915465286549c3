import { type ReactNode, useRef } from "react";
import type { Pages } from "../pages.ts";
import { text } from "../text.ts";
import { Pager } from "./pager.tsx";
import { Read } from "./states.tsx";
import { type Column, Table } from "./table.tsx";

interface StatesProps {
  readonly pages: Pages;
  readonly rows: readonly unknown[];
  /** Stands where the rows would be if there are none. */
  readonly empty: ReactNode;
  readonly children: ReactNode;
}

/** A page of a list: it is empty, or it has rows, and maybe other pages. */
export function PageStates({ pages, rows, empty, children }: StatesProps) {
  const { error, isLoading, page, isLast, refetch, onTurn } = pages;
  const top = useRef<HTMLDivElement>(null);
  const turn = (to: number) => {
    onTurn(to);
    top.current?.scrollIntoView({ block: "start" });
  };
  // A page may have no rows that fit the filters, and be followed by one that has.
  const none = page === 1 && isLast ? empty : <p className="soft">{text.states.noneOnPage}</p>;
  return (
    <div ref={top} className="stack list-top" aria-busy={pages.isBusy}>
      <Read of={{ data: isLoading ? undefined : rows, error, refetch }}>
        {({ length }) => (length > 0 ? children : none)}
      </Read>
      <Pager {...pages} isLast={isLast || isLoading} onTurn={turn} />
    </div>
  );
}

interface ListedProps<Row> extends Omit<StatesProps, "children"> {
  readonly label: string;
  readonly rows: readonly Row[];
  readonly columns: readonly Column<Row>[];
  readonly keyOf: (row: Row) => string;
  /** Whether it lies in a panel already. */
  readonly isWithin?: boolean;
}

/** A list as a table, by pages. */
export function Listed<Row>({ pages, rows, empty, isWithin = false, ...table }: ListedProps<Row>) {
  return (
    <PageStates pages={pages} rows={rows} empty={empty}>
      {isWithin ? (
        <Table rows={rows} {...table} />
      ) : (
        <section className="panel">
          <Table rows={rows} {...table} />
        </section>
      )}
    </PageStates>
  );
}
