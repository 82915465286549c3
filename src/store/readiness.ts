import { goneAfterMs, type Instance } from "./instances.ts";
import type { ServerClock } from "./server-clock.ts";

/** Milliseconds for which callers get the last result. */
const keptMs = 250;

export const skewMsMax = 2_000;

/** Whether this machine's clock and the database's agree. */
export const isClockInStep = ({ skewMs }: Pick<ServerClock, "skewMs">): boolean => Math.abs(skewMs) <= skewMsMax;

/**
 * Returns a check that gives the reason why this instance is not ready, or undefined. Simultaneous callers share one
 * check, so a flood of probes costs the database nothing.
 */
export function createReadiness(
  clock: ServerClock,
  instance: Pick<Instance, "storedAtMs">,
): () => Promise<string | undefined> {
  let latest: Promise<string | undefined> | undefined;
  const look = async (): Promise<string | undefined> => {
    try {
      await clock.measure();
      return troubleOf(clock, performance.now() - instance.storedAtMs);
    } catch {
      return "the database cannot be reached";
    } finally {
      setTimeout(() => (latest = undefined), keptMs).unref();
    }
  };
  return () => (latest ??= look());
}

function troubleOf(clock: ServerClock, unconfirmedMs: number): string | undefined {
  if (unconfirmedMs > goneAfterMs) {
    return `the database cannot be reached: its majority has stored nothing for ${seconds(unconfirmedMs)}`;
  }
  if (isClockInStep(clock)) return undefined;
  const { skewMs } = clock;
  const where = skewMs > 0 ? "ahead of" : "behind";
  return `the clock of this machine is ${seconds(Math.abs(skewMs))} ${where} the database's; at most ${seconds(skewMsMax)} are allowed; synchronise both (NTP)`;
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
