import { parseArgs } from "node:util";
import { batches, single, snapshots } from "./bodies.ts";
import { restLoad, type RestTarget } from "./load.ts";
import { openStage } from "./stage.ts";

/**
 * `npm run bench:soak -- [--minutes N]`: every kind of request in turn for N minutes (default 10), with the peak memory
 * of each turn. It fails if a request fails, or if the last third peaks more than a tenth above the middle third. In the first third, caches and heap may grow to their size.
 */
const { values } = parseArgs({ options: { minutes: { type: "string", default: "10" } } });
const turnSeconds = 5;
const turns = Math.max(6, Math.round((Number(values.minutes) * 60) / turnSeconds));
const connections = 64;
const growthMax = 1.1;

const stage = await openStage();
try {
  const service = await stage.startService();
  const base = { url: service.url, method: "POST", authorization: stage.authorization } as const;
  const kinds: RestTarget[] = [
    { ...base, path: "/api/v1/ingest/events", bodies: single },
    { ...base, path: "/api/v1/ingest/events", bodies: single, isKeyed: true },
    { ...base, path: "/api/v1/ingest/events", bodies: batches },
    { ...base, path: "/api/v1/ingest/snapshots", bodies: snapshots, isKeyed: true },
  ];
  const peaks: number[] = [];
  let failed = 0;
  for (let turn = 0; turn < turns; turn++) {
    await service.resetPeak();
    const load = await restLoad(kinds[turn % kinds.length] as RestTarget, connections, turnSeconds);
    failed += load.failed;
    peaks.push((await service.peakMegabytes()) ?? 0);
    console.log(
      `${turn * turnSeconds} s: ${Math.round(load.requests / load.seconds)} requests/s, ${peaks.at(-1)?.toFixed(0)} MB`,
    );
  }
  const third = Math.floor(turns / 3);
  const meanOf = (list: readonly number[]) => list.reduce((sum, peak) => sum + peak, 0) / list.length;
  const [middle, last] = [meanOf(peaks.slice(third, 2 * third)), meanOf(peaks.slice(-third))];
  const isFlat = last <= middle * growthMax;
  console.log(
    `${failed} requests failed; mean peak ${middle.toFixed(0)} MB in the middle third, ${last.toFixed(0)} MB in the last: ${isFlat ? "flat" : "not flat"}`,
  );
  process.exitCode = failed === 0 && isFlat ? 0 : 1;
} finally {
  await stage.close();
}
