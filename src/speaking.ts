import { Code, ConnectError } from "@connectrpc/connect";
import { timelineLimits } from "./limits.ts";

/** A stream that is silent for longer is broken: the service speaks more often. */
const silentMsMax = 3_000 * timelineLimits.heartbeatSeconds;

/** The messages of a stream of the service. @throws ConnectError unavailable if it is silent for too long. */
export async function* speaking<Message>(
  open: (signal: AbortSignal) => AsyncIterable<Message>,
  stop: AbortSignal,
): AsyncGenerator<Message> {
  const silent = new AbortController();
  const watch = () => setTimeout(() => silent.abort(), silentMsMax);
  let watchdog = watch();
  try {
    for await (const message of open(AbortSignal.any([stop, silent.signal]))) {
      clearTimeout(watchdog);
      watchdog = watch();
      yield message;
    }
  } catch (error) {
    if (silent.signal.aborted) throw new ConnectError("the stream is silent", Code.Unavailable);
    throw error;
  } finally {
    clearTimeout(watchdog);
  }
}
