import type { Timestamp } from "@bufbuild/protobuf/wkt";
import { agoOf, dateOf, moment } from "../format.ts";

/** A moment in relation to now; the exact one is beside the pointer and for screen readers. */
export function Time({ at }: { readonly at: Timestamp | undefined }) {
  const date = dateOf(at);
  if (date === undefined) return <>{agoOf(at)}</>;
  return (
    <time dateTime={date.toISOString()} title={moment(date)}>
      {agoOf(at)}
    </time>
  );
}
