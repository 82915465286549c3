import { type ChangeStream, MongoNetworkError } from "mongodb";
import { bounded } from "./database.ts";
import { beatEveryMs } from "./instances.ts";

/**
 * How long a stream may stand still, in milliseconds, before its member counts as one that no longer follows its set.
 * Every running instance writes a beat each second, and each write that a majority has takes a stream further.
 */
export const standsStillMsMax = 4 * beatEveryMs;

/** The member on which a change stream was opened no longer follows its set: opened anew, the stream goes on elsewhere. */
export class StandsStill extends MongoNetworkError {}

/**
 * Reads a change stream. What this answers gives the next change, or null where there is none for now, which holds of the
 * whole set: a stream is bound to the member on which it was opened, and one that does not follow the set would tell of no
 * change for ever.
 * @throws StandsStill, from what this answers; or as the driver.
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
      throw new StandsStill(`the change stream has stood still for ${Math.round(nowMs - movedAtMs)} ms`);
    }
    return change;
  };
}
