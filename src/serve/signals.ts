import { constants } from "node:os";

/** Signals that ask the process to end: from an orchestrator, Ctrl-C, or a closed terminal. */
export const endSignals = ["SIGTERM", "SIGINT", "SIGHUP"] as const;

export interface Signals {
  /** Aborted just before the process ends; listeners must not wait. */
  readonly ending: AbortSignal;
  /** Resolves with the next signal, which then does not end the process. */
  stop(): Promise<NodeJS.Signals>;
  /** Restores the signals' default action. */
  release(): void;
}

/**
 * Before `stop` a signal ends the process with 128 + its number; after `stop` the second signal does. SIGUSR1 does
 * nothing: by default it opens Node's inspector, and every local user may connect to that. `npm start` passes
 * `--disable-sigusr1`; the handler protects those who start the file directly.
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
