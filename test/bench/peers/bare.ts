import { createServer } from "node:http";
import type { AddressInfo } from "node:net";

/** The limit of Node's HTTP server: one constant answer. */
const body = JSON.stringify({
  ok: true,
  organizationId: "org_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
  app: { id: "app_01HP3K5V4J3M9NVT8XZKQ9YQ2E", slug: "crm-hub", name: "CRM Hub" },
});
const headers = { "content-type": "application/json; charset=utf-8", "content-length": Buffer.byteLength(body) };
const server = createServer((_request, response) => response.writeHead(200, headers).end(body));
server.listen(0, "127.0.0.1", () =>
  console.log(`Listening on http://127.0.0.1:${(server.address() as AddressInfo).port}`),
);
