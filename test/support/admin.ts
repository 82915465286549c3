import type { Db } from "mongodb";
import { type Client, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport, createGrpcWebTransport } from "@connectrpc/connect-node";
import { newAccessToken } from "../../src/access/access-token.ts";
import { hashOfKey } from "../../src/access/principal.ts";
import { createAdminServices } from "../../src/admin/services.ts";
import { Admin, RecordedRequestSchema } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { createIdSource } from "../../src/ids.ts";
import { restJson } from "../../src/message-json.ts";
import { accessTokenCollection, type Role } from "../../src/store/access-tokens.ts";
import { adminInProcess } from "../../src/transport/api/admin-in-process.ts";
import type { App } from "../../src/app.ts";

const ids = createIdSource();

/** An access token that the database has. */
export async function insertToken(
  { app }: { readonly app: Pick<App, "db"> },
  role: Role,
  organizationId?: string,
  fields: { readonly expiresAt?: Date; readonly revokedAt?: Date } = {},
): Promise<{ readonly id: string; readonly token: string }> {
  const token = newAccessToken();
  const id = ids.next("tok");
  await accessTokenCollection(app.db).insertOne({
    _id: id,
    hash: hashOfKey(token),
    hint: `${token.slice(0, 11)}…`,
    name: `a ${role}`,
    role,
    ...(organizationId === undefined ? {} : { organizationId }),
    expiresAt: fields.expiresAt ?? null,
    revokedAt: fields.revokedAt ?? null,
    createdAt: new Date(),
  });
  return { id, token };
}

const transports = {
  connect: createConnectTransport,
  "grpc-web": createGrpcWebTransport,
  grpc: createGrpcTransport,
} as const;
export type AdminProtocol = keyof typeof transports;

/** A client that sends the token with each call. */
export function adminClient(
  baseUrl: string,
  token: string | undefined,
  protocol: AdminProtocol = "connect",
): Client<typeof Admin> {
  const authorize: Interceptor = (next) => (request) => {
    if (token !== undefined) request.header.set("authorization", `Bearer ${token}`);
    return next(request);
  };
  const transport = transports[protocol]({
    baseUrl,
    httpVersion: protocol === "connect" ? "1.1" : "2",
    interceptors: [authorize],
  } as never);
  return createClient(Admin, transport);
}

/** Calls administration over REST. */
export async function adminRest(
  baseUrl: string,
  token: string | undefined,
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: unknown,
): Promise<{ readonly status: number; readonly body: any; readonly headers: Headers }> {
  const response = await fetch(`${baseUrl}/api/v1/admin${path}`, {
    method,
    headers: {
      ...(token === undefined ? {} : { authorization: `Bearer ${token}` }),
      ...(body === undefined ? {} : { "content-type": "application/json" }),
    },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  return { status: response.status, body: await response.json(), headers: response.headers };
}

/** What GetRequest answers about a request in REST's form, by a clock that is ahead, so that it waits for no record. */
export async function showRequest(db: Db, requestId: string, aheadMs = 4_000): Promise<Record<string, any>> {
  const now = () => Date.now() + aheadMs;
  const services = await createAdminServices(db, { ids, now, jobs: { begun() {} }, auditDays: 0 });
  const operator = { kind: "cli", id: "test", name: "test", role: "operator" } as const;
  const identity = { ...operator, organizationId: undefined, expiresAtMs: Number.POSITIVE_INFINITY };
  return restJson(RecordedRequestSchema, await adminInProcess(services, identity).getRequest({ requestId }));
}
