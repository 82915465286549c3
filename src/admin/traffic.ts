import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  addCounts,
  minuteMs,
  noTraffic,
  percentileOf,
  readMinutes,
  requestsOf,
  type TrafficCounts,
} from "../store/traffic.ts";
import type { Handler } from "./dispatch.ts";

const minutesShown = 60;

export const getTraffic: Handler<"getTraffic"> = async (request, call) => {
  const { _id: organizationId } = await call.organization(request.organizationId);
  const nowMs = call.nowDate.getTime();
  const first = Math.floor(nowMs / minuteMs) - minutesShown + 1;
  const found = new Map((await readMinutes(call.db, organizationId, first)).map((one) => [one.minute, one]));
  const shown = Array.from({ length: minutesShown }, (_, i) => found.get(first + i) ?? noTraffic());
  const sum = noTraffic();
  for (const counts of shown) addCounts(sum, counts);
  const figures = figuresOf(sum);
  const minutes = shown.map((counts, i) => ({
    start: timestampFromMs((first + i) * minuteMs),
    ...figuresOf(counts),
  }));
  const seconds = (nowMs - first * minuteMs) / 1000;
  return { organizationId, ...figures, requestsPerSecond: figures.requests / seconds, minutes };
};

const figuresOf = (counts: TrafficCounts) => ({
  requests: requestsOf(counts),
  refused: counts.refused,
  p50Ms: percentileOf(counts, 0.5),
  p99Ms: percentileOf(counts, 0.99),
});
