const backoffMs = { first: 250, max: 30_000 } as const;
/** Longest wait. Node's timers fire at once if they are longer than 2^31 ms. */
const waitMsMax = 3_600_000;

/**
 * Milliseconds to wait before the next try.
 * @param attempt from 1.
 * @param askedSeconds what the service asks for. Default: twice as long after each try.
 * @param leftMs until the last try.
 */
export function waitBefore(attempt: number, askedSeconds: number | undefined, leftMs: number): number {
  const ceiling = Math.min(backoffMs.max, backoffMs.first * 2 ** (attempt - 1));
  // The random part keeps several senders from retrying at the same moment.
  const ms =
    askedSeconds === undefined
      ? ceiling * (0.5 + Math.random() / 2)
      : Math.max(askedSeconds * 1000, backoffMs.first) + Math.random() * backoffMs.first;
  return Math.min(ms, leftMs, waitMsMax);
}
