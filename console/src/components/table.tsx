import type { ReactNode } from "react";
import { text } from "../text.ts";
import { Action } from "./action.tsx";

export interface Column<Row> {
  readonly name: string;
  readonly of: (row: Row) => ReactNode;
  readonly isNumber?: boolean;
  readonly isMono?: boolean;
  /** For a column of buttons: only screen readers hear its name. */
  readonly isUnnamed?: boolean;
}

interface TableProps<Row> {
  readonly label: string;
  readonly columns: readonly Column<Row>[];
  readonly rows: readonly Row[];
  readonly keyOf: (row: Row) => string;
}

/** A table that scrolls on its own where the screen is narrow; the keyboard can scroll it, too. */
export function Table<Row>({ label, columns, rows, keyOf }: TableProps<Row>) {
  return (
    <div className="scroll" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead>
          <tr>
            {columns.map(({ name, isNumber, isUnnamed }) => (
              <th key={name} className={isNumber === true ? "number" : undefined}>
                {isUnnamed === true ? <span className="visually-hidden">{name}</span> : name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((row) => (
            <tr key={keyOf(row)}>
              {columns.map(({ name, of, isNumber, isMono }) => (
                <td key={name} className={isNumber === true ? "number" : isMono === true ? "mono" : undefined}>
                  {of(row)}
                </td>
              ))}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

interface MoreProps {
  readonly list: {
    readonly hasNextPage: boolean;
    readonly isFetchingNextPage: boolean;
    readonly fetchNextPage: () => Promise<unknown>;
  };
}

/** The button for the next page of a list. */
export const More = ({ list }: MoreProps) =>
  list.hasNextPage && (
    <Action isOff={list.isFetchingNextPage} onClick={list.fetchNextPage}>
      {text.states.more}
    </Action>
  );
