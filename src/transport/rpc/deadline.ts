/** Timers run in whole steps, in milliseconds. Node keeps one list per duration, and callers send many deadlines. */
const stepMs = 10;
/** Longest time of a Node timer, in milliseconds: 24 days. A longer one would fire at once. */
export const timerMsMax = 2 ** 31 - 1;

/** Calls `work` after `ms`, at most one step late. Returns a function that cancels it. */
export function afterMs(ms: number, work: () => void): () => void {
  const timer = setTimeout(work, Math.min(Math.max(Math.ceil(ms / stepMs) * stepMs, 0), timerMsMax));
  return () => clearTimeout(timer);
}
