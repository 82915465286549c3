import type { DescMethod } from "@bufbuild/protobuf";
import { Ingest } from "../../gen/ingest/v1/ingest_pb.js";
import { httpRuleOf } from "../../http-rule.ts";
import type { IngestCalls } from "../../ingest/call.ts";
import type { Call } from "../../ingest/services.ts";
import type { EventsAnswer } from "../../ingest/events.ts";
import { limits } from "../../limits.ts";
import { isoTime } from "../../time.ts";
import { checkJsonType, parseJson } from "../http/body.ts";
import type { Incoming, Route, RouteReply, RouteRequest, StreamReply } from "../http/route.ts";

/** Ingest's REST paths, which the schema declares on its RPCs. They only translate. */
export function restRoutes(calls: IngestCalls): Route[] {
  return [
    route(Ingest.method.ping, calls, (call) => reply(200, calls.ping(call))),
    route(Ingest.method.events, calls, (call, request) =>
      readJson(request)
        .then((body) => calls.events(call, body))
        .then((outcome) => eventsReply(request.answerOf(outcome))),
    ),
    route(Ingest.method.snapshots, calls, async (call, request) => {
      const body = await readJson(request);
      const outcome = await calls.snapshots(call, body);
      const { requestId, snapshotType, worker } = request.answerOf(outcome);
      return reply(202, { requestId, ok: true, snapshotType, worker });
    }),
  ];
}

export function route(
  method: DescMethod,
  calls: IngestCalls,
  answer: (call: Call, request: RouteRequest) => RouteReply | Promise<RouteReply | StreamReply>,
): Route {
  const { method: verb, path } = httpRuleOf(method);
  return {
    ...{ method: verb, path, rpc: method.name },
    // The body arrives after Node has handed on the head, so this waits even if admission does not.
    handle: (request) => Promise.resolve(admit(calls, request)).then((call) => answer(call, request)),
  };
}

/** Admits a request, over any protocol. */
export function admit(calls: IngestCalls, request: Incoming): Call | Promise<Call> {
  const outcome = calls.admit(request.headers, request.start);
  return outcome instanceof Promise ? outcome.then((one) => request.answerOf(one)) : request.answerOf(outcome);
}

function readJson(request: RouteRequest): Promise<unknown> {
  checkJsonType(request.headers["content-type"]);
  return request.readBody(limits.bodyBytesMax).then(parseJson);
}

export const reply = (status: number, body: unknown): RouteReply => ({
  status,
  body: JSON.stringify(body),
});

/** The members that only events with an id of their own have. */
const membersOf = ({ eventId, duplicate, conflict }: Partial<EventsAnswer["accepted"][number]>): string =>
  eventId === undefined ? "" : `,${JSON.stringify({ eventId, duplicate, conflict }).slice(1, -1)}`;

/** Writes the JSON by hand, because no type and no time has a character that JSON escapes. */
function eventsReply({ requestId, accepted, rejected }: EventsAnswer): RouteReply {
  let list = "";
  let last: Date | undefined;
  let time = "";
  for (const event of accepted) {
    const { eventType, timestamp } = event;
    // Events without a time share the time of receipt.
    if (timestamp !== last) {
      last = timestamp;
      time = isoTime(timestamp);
    }
    list += `${list === "" ? "" : ","}{"eventType":"${eventType}","timestamp":"${time}"${membersOf(event)}}`;
  }
  const counts = `"accepted":${accepted.length},"rejected":${rejected.length},"batchLimit":${limits.eventsMax}`;
  const results = `{"accepted":[${list}],"rejected":${rejected.length === 0 ? "[]" : JSON.stringify(rejected)}}`;
  return {
    status: rejected.length === 0 ? 202 : 207,
    body: `{"requestId":"${requestId}",${counts},"results":${results}}`,
  };
}
