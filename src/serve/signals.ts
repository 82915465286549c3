import { constants } from "node:os";

/** SIGTERM and SIGINT, as they come. */
export interface Signals {
  /** Aborted when the process is about to end at once; listeners have no time to wait for anything. */
  readonly ending: AbortSignal;
  /** From now on the first signal no longer ends the process; it comes back here. */
  stop(): Promise<NodeJS.Signals>;
}

/** Until `stop` is called, and after it the second time, a signal ends the process with 128 + its number. */
export function watchSignals(): Signals {
  const ending = new AbortController();
  let graceful: ((signal: NodeJS.Signals) => void) | undefined;
  const onSignal = (signal: NodeJS.Signals) => {
    if (graceful !== undefined) {
      graceful(signal);
      graceful = undefined;
      return;
    }
    ending.abort();
    process.exit(128 + constants.signals[signal]);
  };
  for (const signal of ["SIGTERM", "SIGINT"] as const) process.on(signal, onSignal);
  return { ending: ending.signal, stop: () => new Promise((resolve) => (graceful = resolve)) };
}
