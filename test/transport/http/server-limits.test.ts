import { afterAll, beforeAll, expect, test } from "vitest";
import { beginMs } from "../../../src/ingest/call.ts";
import { limits } from "../../../src/limits.ts";
import { workerCollection } from "../../../src/store/workers.ts";
import { serverBounds } from "../../../src/transport/http/server-limits.ts";
import { RawConnection } from "../../support/raw-connection.ts";
import { bearer, createTenant, protocols, startService, type Tenant, type TestService } from "../../support/service.ts";

let service: TestService;
let tenant: Tenant;

beforeAll(async () => {
  service = await startService();
  tenant = await createTenant(service.admin);
});
afterAll(() => service.app.close());

const send = (externalIds: readonly string[], email?: string) =>
  protocols.REST!(
    service.app.url,
    "events",
    {
      events: externalIds.map((externalId) => ({
        eventType: "ticket.resolved",
        category: "project_management",
        actor: { externalId, email },
      })),
    },
    bearer(tenant.key),
  );

test("a worker gains at most 100 external ids; events with others and its email are still its own", async () => {
  const email = "many@example.org";
  await send(["first"], email);
  const many = Array.from({ length: limits.externalIdsMax + 20 }, (_, i) => `id-${i}`);
  const answer = await send(many, email);
  expect(answer.body).toMatchObject({ accepted: many.length, rejected: 0 });
  const workers = await workerCollection(service.app.db).find({ email }).toArray();
  expect(workers.map(({ links }) => links.length)).toEqual([limits.externalIdsMax]);
  expect((await send(["one-more"], email)).body).toMatchObject({ accepted: 1, rejected: 0 });
  expect(await workerCollection(service.app.db).countDocuments()).toBe(1);
  await send(["one-more"]);
  expect(await workerCollection(service.app.db).countDocuments()).toBe(2);
});

test("work is dropped only after a caller has had time to send its body", () => {
  expect(beginMs).toBeGreaterThan(serverBounds.requestMs);
});

test("half of HTTP/2's preface delays no one", async () => {
  const half = await RawConnection.open(service.app.port);
  await half.write("PRI * HTTP/2.0\r\n\r");
  const answers = await Promise.all(Array.from({ length: 20 }, () => fetch(`${service.app.url}/healthz`)));
  expect(answers.map(({ status }) => status)).toEqual(answers.map(() => 200));
  await half.write("\n");
  await half.write("SM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
  // The server's own SETTINGS: it kept the first bytes.
  expect(await half.sees("\x04\0\0\0\0\0")).toBe(true);
  half.destroy();
});
