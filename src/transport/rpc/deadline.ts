/** Timers are set to whole steps, so that Node keeps few lists of them for all the deadlines that callers send. */
const stepMs = 10;
/** The longest that a timer of Node can wait, in milliseconds: 24 days. A longer one would fire at once. */
export const timerMsMax = 2 ** 31 - 1;

/** Does `work` once `ms` have passed, at most a step late. Returns how to call it off. */
export function afterMs(ms: number, work: () => void): () => void {
  const timer = setTimeout(work, Math.min(Math.max(Math.ceil(ms / stepMs) * stepMs, 0), timerMsMax));
  return () => clearTimeout(timer);
}
