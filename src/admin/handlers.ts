import { createApp, deleteApp, getApp, listApps, updateApp } from "./apps.ts";
import type { Handlers } from "./dispatch.ts";
import { createOrganization, getOrganization, listOrganizations, updateOrganization } from "./organizations.ts";
import { whoAmI } from "./who-am-i.ts";

/** The implementation of every RPC that answers with one message. */
export const handlers: Partial<Handlers> = {
  ...{ whoAmI },
  ...{ createOrganization, listOrganizations, getOrganization, updateOrganization },
  ...{ createApp, listApps, getApp, updateApp, deleteApp },
};
