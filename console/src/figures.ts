/** What an axis of values shows: zero and all of them, with some space beyond. */
export const rangeOf = (min: number, max: number): [min: number, max: number] => {
  const low = Math.min(0, min * 1.1);
  return [low, Math.max(low === 0 ? 1 : 0, max * 1.1)];
};

/** The days of a month until today, so that a silence shows. A service whose clock is ahead may have counted later ones. */
export function daysOf(month: string, counted: readonly string[], now: Date): string[] {
  const today = now.toISOString().slice(0, 10);
  const last =
    [today, ...counted]
      .filter((day) => day.startsWith(month))
      .toSorted()
      .at(-1) ?? "";
  return Array.from({ length: Number(last.slice(8)) }, (_, i) => `${month}-${String(i + 1).padStart(2, "0")}`);
}
