import { randomUUID } from "node:crypto";
import { Agent, request } from "node:http";
import { setTimeout as delay } from "node:timers/promises";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Client as GrpcClient, credentials, Metadata } from "@grpc/grpc-js";
import { EventCategory, EventsRequestSchema, EventsResponseSchema } from "../../src/gen/ingest/v1/ingest_pb.js";
import { event } from "./requests.ts";
import { bearer } from "./service.ts";

/** The outcome of a load of one event each, identified by the actor's externalId. */
export interface LoadReport {
  /** externalIds of the acknowledged events. */
  readonly acknowledged: string[];
  /** All other outcomes, except refused connections, which are retried. */
  readonly failures: string[];
}

/** No connection, so the caller may always retry. */
const neverSent = /ECONNREFUSED|waiting for LB pick|reset before it was taken/i;

/** Between two requests of a caller: some connections are then idle when a service stops, and others have a request. */
const pauseMs = 10;

export interface Load {
  readonly report: LoadReport;
  /** Begins no more requests; settles when the running ones have ended. */
  stop(): Promise<void>;
}

/** Callers over REST (HTTP/1.1, kept connections) and gRPC that send one event after another. */
export function startLoad(url: string, key: string, callers = 8): Load {
  const report: LoadReport = { acknowledged: [], failures: [] };
  let stopped = false;
  const run = async (send: (externalId: string) => Promise<string | undefined>) => {
    while (!stopped) {
      const externalId = randomUUID();
      const failure = await send(externalId);
      if (failure === undefined) report.acknowledged.push(externalId);
      else if (neverSent.test(failure)) await delay(5);
      else report.failures.push(failure);
      await delay(pauseMs);
    }
  };
  const runs = Array.from({ length: callers }, (_, i) =>
    run(i % 2 === 0 ? restSender(url, key) : grpcSender(url, key)),
  );
  return {
    report,
    stop: async () => {
      stopped = true;
      await Promise.all(runs);
    },
  };
}

function restSender(url: string, key: string) {
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const headers = { ...bearer(key), "content-type": "application/json" };
  let reset: string | undefined;
  return (externalId: string) =>
    new Promise<string | undefined>((resolve) => {
      const call = request(`${url}/api/v1/ingest/events`, { method: "POST", agent, headers }, (response) => {
        let text = "";
        response.on("data", (chunk) => (text += chunk));
        response.on("end", () => resolve(reset ?? (response.statusCode === 202 ? undefined : `REST ${text}`)));
        response.on("error", (error) => resolve(`REST answer: ${error.message}`));
      });
      call.on("error", ({ message }) => {
        // The kernel resets connections that the service has not accepted when it stops listening. Later ones are
        // refused. An answer would show that the service has cut the connection itself.
        const isUntaken =
          /^(connect|read) ECONNRESET/.test(message) && !call.reusedSocket && call.socket?.bytesRead === 0;
        if (isUntaken) reset = `REST: ${message}, and it still listens`;
        resolve(isUntaken ? "REST: reset before it was taken" : `REST: ${message}`);
      });
      call.end(JSON.stringify({ events: [event({ actor: { externalId } })] }));
    });
}

/** grpc-js waits for a connection. Like every gRPC client, it repeats a call that the server has provably not begun. */
function grpcSender(url: string, key: string) {
  const client = new GrpcClient(new URL(url).host, credentials.createInsecure(), {
    "grpc.use_local_subchannel_pool": 1,
  });
  const metadata = new Metadata({ waitForReady: true });
  metadata.set("authorization", bearer(key).authorization);
  const base = { eventType: "ticket.resolved", category: EventCategory.PROJECT_MANAGEMENT };
  return (externalId: string) =>
    new Promise<string | undefined>((resolve) => {
      const sent = create(EventsRequestSchema, {
        events: [{ ...base, actor: { id: { case: "externalId", value: externalId } } }],
      });
      client.makeUnaryRequest(
        "/ingest.v1.Ingest/Events",
        (message) => Buffer.from(toBinary(EventsRequestSchema, message)),
        (bytes) => fromBinary(EventsResponseSchema, bytes),
        sent,
        metadata,
        { deadline: Date.now() + 20_000 },
        (error) => resolve(error === null ? undefined : `gRPC: ${error.message}`),
      );
    });
}
