import { type ChangeStream, MongoNetworkError } from "mongodb";
import { bounded } from "./database.ts";
import { beatEveryMs } from "./instances.ts";

/**
 * Milliseconds without progress after which a stream's member counts as cut off. Each second every instance writes a
 * beat, which moves all streams forward.
 */
export const standsStillMsMax = 4 * beatEveryMs;

/** The stream's member is cut off from its replica set. A new stream uses another member. */
export class StandsStill extends MongoNetworkError {}

/**
 * Returns a function that reads the next change, or null if there is none yet. A stream stays on its member; on one
 * that is cut off it would be silent for ever, so the function throws StandsStill.
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
