import { fork } from "node:child_process";
import { Agent, request } from "node:http";
import { setTimeout as sleep } from "node:timers/promises";
import { createClient } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { EventCategory, Ingest } from "../../src/gen/ingest/v1/ingest_pb.js";

/** The experience of a well-behaved caller since the last question. */
export interface Experience {
  readonly requests: number;
  /** Failures, each kind once. */
  readonly failures: readonly string[];
  /** Answers of `/readyz`, each kind once, except "ready". */
  readonly unready: readonly string[];
  readonly p50Ms: number;
  readonly maxMs: number;
}

export interface GoodClient {
  experience(): Promise<Experience>;
  stop(): Promise<void>;
}

const requestMs = 30_000;
const pauseMs = 10;
const readyEveryMs = 250;

/**
 * A caller that behaves well, without end. It runs in its own process, so that its times do not include the attackers'
 * work. It sends events over a kept and a fresh HTTP/1.1 connection, and over a kept and a fresh gRPC session. It also
 * asks `/readyz`, which is not in its times.
 */
export function startGoodClient(url: string, key: string): GoodClient {
  const child = fork(new URL(import.meta.url), [url], {
    execArgv: [],
    env: { PATH: process.env.PATH, GOOD_CLIENT_KEY: key },
  });
  const ask = <T>(question: "experience" | "stop") =>
    new Promise<T>((resolve, reject) => {
      const ended = () => reject(new Error("the good caller's process has ended"));
      child.once("message", (answer) => {
        child.off("exit", ended);
        resolve(answer as T);
      });
      child.once("exit", ended).send(question);
    });
  return {
    experience: () => ask<Experience>("experience"),
    async stop() {
      await ask("stop");
      child.kill();
    },
  };
}

if (process.send !== undefined && process.env.GOOD_CLIENT_KEY !== undefined) {
  const url = process.argv[2] as string;
  const key = process.env.GOOD_CLIENT_KEY;
  let times: number[] = [];
  let failures = new Set<string>();
  let unready = new Set<string>();
  /** Requests that each way has finished since the last question. */
  const finished = [0, 0, 0, 0];
  let stopping = false;

  const event = { eventType: "ticket.resolved", category: "project_management", actor: { externalId: "good" } };
  const body = JSON.stringify({ events: [event] });
  const overRest = (agent: Agent | undefined) => () =>
    new Promise<void>((resolve, reject) => {
      const headers = { authorization: `Bearer ${key}`, "content-type": "application/json" };
      const options = { method: "POST", agent: agent ?? new Agent(), headers, timeout: requestMs };
      const sent = request(`${url}/api/v1/ingest/events`, options, (response) => {
        response.resume();
        response.once("end", () =>
          response.statusCode === 202 ? resolve() : reject(new Error(`REST answered ${response.statusCode}`)),
        );
        response.once("error", reject);
      });
      sent.once("error", reject);
      sent.once("timeout", () => sent.destroy(new Error(`REST: no answer within ${requestMs} ms`)));
      sent.end(body);
    });
  const overGrpc = (kept: Http2SessionManager | undefined) => async () => {
    const sessionManager = kept ?? new Http2SessionManager(url);
    const client = createClient(Ingest, createGrpcTransport({ baseUrl: url, sessionManager }));
    const message = {
      eventType: event.eventType,
      category: EventCategory.PROJECT_MANAGEMENT,
      actor: { id: { case: "externalId", value: "good" } },
    } as const;
    try {
      const headers = { authorization: `Bearer ${key}` };
      const answer = await client.events({ events: [message] }, { headers, timeoutMs: requestMs });
      if (answer.accepted !== 1) throw new Error(`gRPC accepted ${answer.accepted} of 1`);
    } finally {
      if (kept === undefined) sessionManager.abort();
    }
  };

  async function goOn(send: () => Promise<void>, way: number): Promise<void> {
    while (!stopping) {
      const startedMs = performance.now();
      try {
        await send();
        times.push(performance.now() - startedMs);
      } catch (error) {
        failures.add(error instanceof Error ? error.message : String(error));
      }
      finished[way] = (finished[way] as number) + 1;
      await sleep(pauseMs);
    }
  }
  const agent = new Agent({ keepAlive: true, maxSockets: 1 });
  const session = new Http2SessionManager(url);
  const loops = [overRest(agent), overRest(undefined), overGrpc(session), overGrpc(undefined)].map(goOn);

  async function watchReadiness(): Promise<void> {
    while (!stopping) {
      try {
        const answer = await fetch(`${url}/readyz`, { signal: AbortSignal.timeout(requestMs) });
        await answer.arrayBuffer();
        if (answer.status !== 200) unready.add(`/readyz answered ${answer.status}`);
      } catch (error) {
        unready.add(`/readyz: ${error instanceof Error ? error.message : String(error)}`);
      }
      await sleep(readyEveryMs);
    }
  }
  const readiness = watchReadiness();

  process.on("message", async (question: "experience" | "stop") => {
    if (question === "stop") {
      stopping = true;
      await Promise.all([...loops, readiness]);
      agent.destroy();
      session.abort();
      process.send?.(null);
      return;
    }
    // Wait until each way has finished a request.
    while (finished.includes(0)) await sleep(pauseMs);
    finished.fill(0);
    const sorted = times.toSorted((a, b) => a - b);
    process.send?.({
      requests: times.length + failures.size,
      failures: [...failures],
      unready: [...unready],
      p50Ms: sorted[Math.floor(sorted.length / 2)] ?? 0,
      maxMs: sorted.at(-1) ?? 0,
    } satisfies Experience);
    times = [];
    failures = new Set();
    unready = new Set();
  });
}
