import { type Collection, MongoClient } from "mongodb";
import { createIdSource, eventIds } from "../../../src/ids.ts";
import { peerEvents } from "./rows.ts";

/**
 * The limit of the database and its driver for rows in the usual layout: ids as text, and an index for each listing. It
 * inserts them as fast as the driver can. A child process that gets requests and answers as messages.
 */
export interface DriverRequest {
  readonly documents: number;
  readonly connections: number;
  readonly seconds: number;
}

export interface DriverReply {
  readonly requests: number;
  readonly seconds: number;
  /** The duration of each insert, in milliseconds. */
  readonly latenciesMs: number[];
}

const client = new MongoClient(process.env.MONGODB_URI as string, { writeConcern: { w: "majority", journal: true } });
const collection: Collection<{ _id: string }> = client.db().collection(peerEvents.name);
await collection.createIndexes([...peerEvents.indexes]);
const ids = createIdSource();

function documentsOf(count: number) {
  const requestId = ids.next("req");
  const idOf = eventIds(requestId);
  const receivedAt = new Date();
  return Array.from({ length: count }, (_, i) => ({
    _id: idOf(i),
    organizationId: "org_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
    appId: "app_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
    workerId: `wrk_01HP3K5V4J3M9NVT8XZKQ9Y${100 + (i % 900)}`,
    requestId,
    kind: "event",
    type: "ticket.resolved",
    category: "project_management",
    timestamp: receivedAt,
    receivedAt,
    durationSeconds: 240,
    metadata: { ticket_id: `SUP-${i}` },
  }));
}

process.on("message", async ({ documents, connections, seconds }: DriverRequest) => {
  const latenciesMs: number[] = [];
  const start = performance.now();
  const end = start + seconds * 1000;
  await Promise.all(
    Array.from({ length: connections }, async () => {
      while (performance.now() < end) {
        const rows = documentsOf(documents);
        const sentAt = performance.now();
        if (rows.length === 1) await collection.insertOne(rows[0] as (typeof rows)[number]);
        else await collection.insertMany(rows, { ordered: false });
        latenciesMs.push(performance.now() - sentAt);
      }
    }),
  );
  const reply: DriverReply = { requests: latenciesMs.length, seconds: (performance.now() - start) / 1000, latenciesMs };
  process.send?.(reply);
});
process.once("disconnect", () => process.exit(0));
console.log("Listening on nothing");
