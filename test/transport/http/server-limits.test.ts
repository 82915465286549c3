import { afterAll, beforeAll, expect, test } from "vitest";
import { beginMs } from "../../../src/ingest/call.ts";
import { linksMax, workerCollection } from "../../../src/store/workers.ts";
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

const send = (externalIds: readonly string[]) =>
  protocols.REST!(
    service.app.url,
    "events",
    {
      events: externalIds.map((externalId) => ({
        eventType: "ticket.resolved",
        category: "project_management",
        actor: { externalId, email: "many@example.org" },
      })),
    },
    bearer(tenant.key),
  );

test("a worker gains at most 100 external ids; events with others are still its own", async () => {
  await send(["first"]);
  const many = Array.from({ length: linksMax + 20 }, (_, i) => `id-${i}`);
  const answer = await send(many);
  expect(answer.body).toMatchObject({ accepted: many.length, rejected: 0 });
  const workers = await workerCollection(service.app.db).find({ email: "many@example.org" }).toArray();
  expect(workers.map(({ links }) => links.length)).toEqual([linksMax]);
  expect((await send(["one-more"])).body).toMatchObject({ accepted: 1, rejected: 0 });
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
