import { setTimeout as delay } from "node:timers/promises";
import { getOption } from "@bufbuild/protobuf";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { Principals } from "../../src/access/principal.ts";
import { http } from "../../src/gen/google/api/annotations_pb.js";
import { Timeline } from "../../src/gen/ingest/v1/timeline_pb.js";
import { timelineLimits } from "../../src/limits.ts";
import { envelope } from "../support/http2-wire.ts";
import { type Leaver, leaverVersions } from "../support/leaver.ts";
import { bearer, createTenant, startService, type TestService } from "../support/service.ts";
import { watchers } from "../support/timeline.ts";

/** Streams whose callers leave before anything listens for it. */
let service: TestService;
beforeAll(async () => {
  service = await startService({ env: { DRAIN_SECONDS: "1" } });
});
afterAll(() => service.app.close());

const restPath = getOption(Timeline.method.watchEvents, http).pattern.value as string;
const rpcPath = "/ingest.v1.Timeline/WatchEvents";
const empty = envelope(Buffer.alloc(0), 0);
const calls = {
  REST: [{ ":method": "GET", ":path": restPath }, undefined],
  "gRPC-Web": [{ ":path": rpcPath, "content-type": "application/grpc-web+proto" }, empty],
  Connect: [{ ":path": rpcPath, "content-type": "application/connect+proto" }, empty],
  gRPC: [{ ":path": rpcPath, "content-type": "application/grpc+proto", te: "trailers" }, empty],
} as const;
/** The running look-up of the key: the one that admits the call, or the one before its first message. */
const lookUps = { "to be admitted": 1, "to go on": 2 };

const cases = Object.entries(calls).flatMap(([protocol, [headers, body]]) =>
  Object.entries(leaverVersions)
    .filter(([version]) => protocol !== "gRPC" || version === "HTTP/2")
    .flatMap(([version, begin]) =>
      Object.entries(lookUps).map(([why, nth]) => ({ protocol, version, why, nth, begin, headers, body })),
    ),
);
const leavers = 3;
const patience = { timeout: 20_000, interval: 10 };

test.for(cases)(
  "over $protocol and $version a caller that leaves during the look-up of its key ($why) keeps no place",
  async ({ nth, begin, headers, body }) => {
    const tenant = await createTenant(service.admin);
    const { key } = await service.admin.createKey(tenant.appId, undefined, "read");
    const { find } = Principals.prototype;
    const gone = Promise.withResolvers<void>();
    let asked = 0;
    const waiting = vi.spyOn(Principals.prototype, "find").mockImplementation(async function (
      this: Principals,
      authorization,
    ) {
      asked++;
      // The others get here only after all of them were admitted.
      if (asked > (nth - 1) * leavers) await gone.promise;
      return find.call(this, authorization);
    });
    onTestFinished(() => void vi.restoreAllMocks());
    const begun: Leaver[] = [];
    for (let i = 0; i < leavers; i++) begun.push(begin(service.app.url, { ...headers, ...bearer(key) }, body));
    await vi.waitFor(() => expect(asked).toBe(nth * leavers), patience);
    for (const caller of begun) caller.leave();
    // Gives the service time to notice. A slow machine only makes the test weaker.
    await delay(200);
    gone.resolve();
    waiting.mockRestore();
    // The allowed number of streams find a place: a single one that is kept would be missing.
    const stop = new AbortController();
    onTestFinished(() => stop.abort());
    for (let i = 0; i < timelineLimits.organizationWatchersMax; i++) {
      await vi.waitFor(async () => {
        const stream = watchers["REST lines"]!(service.app.url, {}, bearer(key), stop.signal);
        expect((await stream.next()).done).toBe(false);
      }, patience);
    }
  },
);
