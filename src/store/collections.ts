import { apps } from "./apps.ts";
import { cards } from "./snapshots.ts";
import { claims } from "./idempotency.ts";
import type { CollectionDefinition } from "./database.ts";
import { events } from "./events.ts";
import { instances, revisions } from "./instances.ts";
import { keyUses } from "./key-uses.ts";
import { keys } from "./keys.ts";
import { organizations } from "./organizations.ts";
import { requests } from "./requests.ts";
import { schema } from "./migrations.ts";
import { secrets } from "./secrets.ts";
import { rateBuckets } from "./rate-buckets.ts";
import { usage } from "./usage.ts";
import { workers } from "./workers.ts";

/** Every collection of the service. */
export const collections: readonly CollectionDefinition[] = [
  organizations,
  apps,
  keys,
  keyUses,
  workers,
  events,
  cards,
  claims,
  usage,
  rateBuckets,
  secrets,
  requests,
  instances,
  revisions,
  schema,
];
