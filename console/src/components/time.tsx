import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { ago, dateOf, moment } from "../format.ts";
import { text } from "../text.ts";
import { useTick } from "../tick.ts";

interface TimeProps {
  readonly at: Timestamp | undefined;
  /** Whether the exact time stands there, too; else it is beside the pointer. */
  readonly isExact?: boolean;
}

/** A moment in relation to now. */
export function Time({ at, isExact = false }: TimeProps) {
  useTick();
  const date = dateOf(at);
  if (date === undefined) return <>{text.actions.never}</>;
  return (
    <time dateTime={date.toISOString()} title={isExact ? undefined : moment(date)}>
      {isExact ? `${moment(date)} (${ago(date)})` : ago(date)}
    </time>
  );
}
