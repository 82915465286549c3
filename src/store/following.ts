import { type ChangeStream, MongoNetworkError } from "mongodb";
import { bounded } from "./database.ts";
import { beatEveryMs } from "./instances.ts";

/**
 * Milliseconds without progress after which a stream's member counts as cut off from its replica set. Every running
 * instance writes a beat each second, and each write that a majority stores moves a stream forward.
 */
export const standsStillMsMax = 4 * beatEveryMs;

/**
 * The member of a change stream is cut off from its replica set. Reopen the stream: the driver then uses another
 * member.
 */
export class StandsStill extends MongoNetworkError {}

/**
 * Returns a function that reads the next change, or null if the replica set has none for now.
 * A stream stays on the member where it was opened. On a member that is cut off it would report no changes for ever.
 * The function then throws StandsStill; it also throws the driver's errors.
 */
export function following<T>(stream: ChangeStream): () => Promise<T | null> {
  let place = "";
  let movedAtMs = performance.now();
  return async () => {
    const change = (await bounded(stream.tryNext())) as T | null;
    const { _data } = stream.resumeToken as { readonly _data: string };
    const nowMs = performance.now();
    if (change !== null || _data !== place) {
      place = _data;
      movedAtMs = nowMs;
    } else if (nowMs - movedAtMs > standsStillMsMax) {
      throw new StandsStill(`the change stream has not moved for ${Math.round(nowMs - movedAtMs)} ms`);
    }
    return change;
  };
}
