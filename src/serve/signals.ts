import { constants } from "node:os";

/** What asks the process to end: an orchestrator, Ctrl-C, and a terminal that is closed. */
export const endSignals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

/** The end signals, as they come. */
export interface Signals {
  /** Aborted when the process is about to end at once; listeners have no time to wait for anything. */
  readonly ending: AbortSignal;
  /** From now on the first signal no longer ends the process; it comes back here. */
  stop(): Promise<NodeJS.Signals>;
  /** From now on signals do again what they do by default. */
  release(): void;
}

/**
 * Until `stop` is called, and after it the second time, a signal ends the process with 128 + its number. SIGUSR1 does
 * nothing: by default it opens Node's inspector, to which every user of the machine may connect. The start lines give Node
 * `--disable-sigusr1`; this is for who starts the file without it.
 */
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
  for (const signal of endSignals) process.on(signal, onSignal);
  const ignore = () => {};
  process.on("SIGUSR1", ignore);
  return {
    ending: ending.signal,
    stop: () => new Promise((resolve) => (graceful = resolve)),
    release: () => {
      for (const signal of endSignals) process.off(signal, onSignal);
      process.off("SIGUSR1", ignore);
    },
  };
}
