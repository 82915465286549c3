import { goneAfterMs, type Instance } from "./instances.ts";
import type { ServerClock } from "./server-clock.ts";

/** How long what a look has found is told, in milliseconds. */
const keptMs = 250;

/** By how much the clocks of this machine and of the database may differ, in milliseconds. */
export const skewMsMax = 2_000;

/**
 * Why requests had better go elsewhere: the database does not answer, its majority confirms nothing, or the clocks differ.
 * Undefined when all is well. Anybody may ask, at any rate: who asks at the same time shares one look.
 */
export function createReadiness(
  clock: ServerClock,
  instance: Pick<Instance, "storedAtMs">,
): () => Promise<string | undefined> {
  let latest: Promise<string | undefined> | undefined;
  const look = async (): Promise<string | undefined> => {
    try {
      await clock.measure();
      return troubleOf(clock.skewMs, performance.now() - instance.storedAtMs);
    } catch {
      return "the database cannot be reached";
    } finally {
      setTimeout(() => (latest = undefined), keptMs).unref();
    }
  };
  return () => (latest ??= look());
}

function troubleOf(skewMs: number, unconfirmedMs: number): string | undefined {
  if (unconfirmedMs > goneAfterMs) {
    return `the database cannot be reached: its majority has stored nothing for ${seconds(unconfirmedMs)}`;
  }
  if (Math.abs(skewMs) <= skewMsMax) return undefined;
  const where = skewMs > 0 ? "ahead of" : "behind";
  return `the clock of this machine is ${seconds(Math.abs(skewMs))} ${where} the database's; at most ${seconds(skewMsMax)} are allowed; synchronise both (NTP)`;
}

const seconds = (ms: number) => `${(ms / 1000).toFixed(1)} s`;
