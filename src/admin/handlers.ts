import { createApp, deleteApp, getApp, listApps, updateApp } from "./apps.ts";
import { listAuditEntries } from "./audit.ts";
import type { Handlers, StreamHandlers } from "./dispatch.ts";
import { createKey, findKey, getKey, listKeys, revokeKey, rotateKey, updateKey } from "./keys.ts";
import { createOrganization, getOrganization, listOrganizations, updateOrganization } from "./organizations.ts";
import { getRequest, listRequests, previewAllow } from "./requests.ts";
import { createToken, listTokens, revokeToken } from "./tokens.ts";
import { listInstances } from "./instances.ts";
import { getTraffic } from "./traffic.ts";
import { getUsage, recountUsage } from "./usage.ts";
import { watchRequests } from "./watch-requests.ts";
import { whoAmI } from "./who-am-i.ts";
import {
  allowWorkerAgain,
  dropCard,
  eraseWorker,
  findErasure,
  getErasure,
  getWorker,
  listWorkers,
  mergeWorkers,
  updateWorker,
} from "./workers.ts";

/** The implementation of every RPC that answers with one message. */
export const handlers: Handlers = {
  ...{ whoAmI },
  ...{ createOrganization, listOrganizations, getOrganization, updateOrganization },
  ...{ createApp, listApps, getApp, updateApp, deleteApp },
  ...{ createKey, listKeys, getKey, updateKey, rotateKey, revokeKey, findKey },
  ...{ createToken, listTokens, revokeToken },
  ...{ getUsage, getTraffic, recountUsage },
  ...{ getRequest, listRequests, previewAllow },
  ...{ listAuditEntries, listInstances },
  ...{ listWorkers, getWorker, updateWorker, dropCard, mergeWorkers },
  ...{ eraseWorker, getErasure, findErasure, allowWorkerAgain },
};

/** The implementation of every RPC that answers with a stream. */
export const streamHandlers: StreamHandlers = { watchRequests };
