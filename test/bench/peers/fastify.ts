import Fastify from "fastify";
import { ByHand, eventsBody, type PeerKey, Refusal, snapshotBody } from "./by-hand.ts";
import { z } from "zod";

/** The REST peer: Fastify, zod and the driver. `MONGODB_URI` names its database. It prints its address. */
const service = await ByHand.open(process.env.MONGODB_URI as string);
const app = Fastify({ logger: { level: "warn" }, bodyLimit: 1_048_576 });

app.setErrorHandler((error, _request, reply) => {
  if (error instanceof Refusal) return reply.status(error.status).send({ error: { message: error.message } });
  if (error instanceof z.ZodError) return reply.status(400).send({ error: { message: z.prettifyError(error) } });
  return reply.status(500).send({ error: { message: "internal error" } });
});

const pong = ({ organizationId, app: { id, slug, name } }: PeerKey) => ({
  ok: true,
  organizationId,
  app: { id, slug, name },
});
const idempotencyKey = (headers: Record<string, unknown>) => headers["idempotency-key"] as string | undefined;

app.get("/api/v1/ingest/ping", async (request) => pong(await service.authenticate(request.headers.authorization)));

/** The same with the key cached for ever. */
const cached = new Map<string, PeerKey>();
app.get("/cached/ping", async (request) => {
  const authorization = request.headers.authorization ?? "";
  let key = cached.get(authorization);
  if (key === undefined) {
    key = await service.authenticate(authorization);
    cached.set(authorization, key);
  }
  return pong(key);
});

app.post("/api/v1/ingest/events", async (request, reply) => {
  const caller = await service.authenticate(request.headers.authorization);
  const answer = await service.ingestEvents(caller, idempotencyKey(request.headers), eventsBody.parse(request.body));
  return reply.status(202).send(answer);
});

app.post("/api/v1/ingest/snapshots", async (request, reply) => {
  const caller = await service.authenticate(request.headers.authorization);
  const answer = await service.ingestSnapshot(
    caller,
    idempotencyKey(request.headers),
    snapshotBody.parse(request.body),
  );
  return reply.status(202).send(answer);
});

await app.listen({ host: "127.0.0.1", port: 0 });
console.log(`Listening on ${app.listeningOrigin}`);
