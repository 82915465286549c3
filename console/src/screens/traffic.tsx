import { useQuery } from "@connectrpc/connect-query";
import { useMemo } from "react";
import { Admin, type Traffic as TrafficAnswer, type TrafficMinute } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import type { ScreenProps } from "../app.tsx";
import { Plot } from "../components/plot.tsx";
import { Empty, Read } from "../components/states.tsx";
import { clock, count, dateOf, rounded } from "../format.ts";
import { text } from "../text.ts";

const own = text.traffic;
const everyMs = 15_000;

/** The requests of the last hour and their latency. */
export function Traffic({ organizationId }: ScreenProps) {
  const traffic = useQuery(Admin.method.getTraffic, { organizationId }, { refetchInterval: everyMs });
  return (
    <>
      <section className="panel">
        <h2>{own.title}</h2>
        <Read of={traffic}>
          {(data) =>
            data.requests === 0 ? <Empty title={own.none} detail={own.noneDetail} /> : <Figures traffic={data} />
          }
        </Read>
      </section>
      {traffic.data !== undefined && traffic.data.requests > 0 && <Minutes minutes={traffic.data.minutes} />}
    </>
  );
}

const milliseconds = (ms: number | undefined) => (ms === undefined ? "–" : `${rounded(ms)} ms`);

function Figures({ traffic }: { readonly traffic: TrafficAnswer }) {
  const { requests, refused, requestsPerSecond, p50Ms, p99Ms } = traffic;
  const figures = [
    [own.perSecond, requestsPerSecond < 0.01 ? own.belowPerSecond : rounded(requestsPerSecond)],
    [own.half, milliseconds(p50Ms)],
    [own.most, milliseconds(p99Ms)],
  ];
  return (
    <>
      <dl className="facts">
        {figures.map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd className="figure">{value}</dd>
          </div>
        ))}
      </dl>
      <p className="soft">{own.sum(count(requests), count(refused))}</p>
    </>
  );
}

/** The current minute shows only if it is the first one with requests: its counts would look like a decline. */
function Minutes({ minutes }: { readonly minutes: readonly TrafficMinute[] }) {
  const { labels, requests, latency } = useMemo(() => {
    const past = minutes.slice(0, -1);
    const shown = past.some((one) => one.requests > 0) ? past : minutes;
    return {
      labels: shown.map(({ start }) => clock(dateOf(start) ?? new Date(0))),
      requests: [
        { name: own.answered, color: "--good", values: shown.map((one) => one.requests - one.refused) },
        { name: own.refused, color: "--bad", values: shown.map(({ refused }) => refused) },
      ],
      latency: [
        { name: own.p50, color: "--accent", values: shown.map(({ p50Ms }) => p50Ms) },
        { name: own.p99, color: "--warn", values: shown.map(({ p99Ms }) => p99Ms) },
      ],
    };
  }, [minutes]);
  return (
    <div className="grid wide">
      <Plot title={own.requests} unit={own.requestsUnit} by={own.minute} labels={labels} series={requests} />
      <Plot title={own.latency} unit={own.latencyUnit} by={own.minute} labels={labels} series={latency} />
    </div>
  );
}
