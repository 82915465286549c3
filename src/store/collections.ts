import { accessTokens } from "./access-tokens.ts";
import { adminAnswers } from "./admin-answers.ts";
import { apps } from "./apps.ts";
import { auditEntries } from "./audit.ts";
import { cards } from "./snapshots.ts";
import { claims } from "./idempotency.ts";
import type { CollectionDefinition } from "./database.ts";
import { events } from "./events.ts";
import { instances } from "./instances.ts";
import { keyUses } from "./key-uses.ts";
import { keys } from "./keys.ts";
import { organizations } from "./organizations.ts";
import { requests } from "./requests.ts";
import { revisions } from "./revisions.ts";
import { schema } from "./migrations.ts";
import { secrets } from "./secrets.ts";
import { rateBuckets } from "./rate-buckets.ts";
import { traffic } from "./traffic.ts";
import { usageDays } from "./usage-days.ts";
import { usage } from "./usage.ts";
import { erasures, workerJobs } from "./worker-jobs.ts";
import { workers } from "./workers.ts";

/**
 * Collections that grow with what organisations send. A sharded cluster spreads them by `key`. Tests fail on commands
 * that do not name the key (but see `everyShard`), and on others that such a cluster refuses.
 */
export const shardedCollections: readonly {
  readonly definition: CollectionDefinition;
  readonly key: "organizationId" | "org";
}[] = [
  ...[workers, cards, claims, usage, usageDays, traffic].map((definition) => ({
    definition,
    key: "organizationId" as const,
  })),
  { definition: events, key: "org" },
];

/** Collections that stay on the database's primary shard; `why` says why one is enough. */
export const unshardedCollections: readonly { readonly definition: CollectionDefinition; readonly why: string }[] = [
  ...[organizations, apps, keys].map((definition) => ({
    definition,
    why: "operators write it, and instances read it once a minute at most, and after each change",
  })),
  { definition: accessTokens, why: "operators write it, and each call of the administration API reads it by a hash" },
  { definition: auditEntries, why: "the transaction of each administrative change writes it" },
  { definition: adminAnswers, why: "the transaction of a change with an idempotency key writes it" },
  { definition: keyUses, why: "an instance writes it once a minute for each key and access token" },
  { definition: rateBuckets, why: "an instance writes it ten times a second at most, for all keys in one command" },
  { definition: requests, why: "bounded to 1 GB an instance, and found by the request's id alone" },
  ...[workerJobs, erasures].map((definition) => ({ definition, why: "an operator's command writes it" })),
  ...[instances, revisions, secrets, schema].map((definition) => ({ definition, why: "holds a few documents" })),
];

export const collections: readonly CollectionDefinition[] = [
  ...[...shardedCollections, ...unshardedCollections].map(({ definition }) => definition),
];
