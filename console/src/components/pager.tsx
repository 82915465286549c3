import { text } from "../text.ts";
import { Action } from "./action.tsx";

interface PagerProps {
  /** From 1. */
  readonly page: number;
  /** Absent if nobody knows it. */
  readonly pages?: number;
  readonly isLast: boolean;
  readonly isBusy?: boolean;
  readonly onTurn: (page: number) => void;
}

/** Turns the pages of a list; nothing if it has one page. */
export function Pager({ page, pages, isLast, isBusy = false, onTurn }: PagerProps) {
  if (page === 1 && isLast) return null;
  return (
    <div className="row pager">
      <Action isOff={page === 1} onClick={() => onTurn(page - 1)}>
        {text.states.previous}
      </Action>
      <span className="soft small" role="status">
        {pages === undefined ? text.states.page(page) : text.states.pageOf(page, pages)}
      </span>
      <Action isOff={isLast || isBusy} onClick={() => onTurn(page + 1)}>
        {text.states.next}
      </Action>
    </div>
  );
}
