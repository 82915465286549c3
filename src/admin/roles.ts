import type { Admin } from "../gen/ingest/admin/v1/admin_pb.js";
import type { Role } from "../store/access-tokens.ts";

/** The local name of an RPC, such as `createApp`. */
export type AdminRpc = keyof (typeof Admin)["method"];

/** The least role that each RPC needs. Handlers ask for more where a member needs it, such as an organisation's plan. */
export const leastRoles: Readonly<Record<AdminRpc, Role>> = {
  whoAmI: "viewer",
  createOrganization: "operator",
  listOrganizations: "viewer",
  getOrganization: "viewer",
  updateOrganization: "manager",
  getUsage: "viewer",
  getTraffic: "viewer",
  recountUsage: "operator",
  createApp: "manager",
  listApps: "viewer",
  getApp: "viewer",
  updateApp: "manager",
  deleteApp: "manager",
  previewAllow: "manager",
  createKey: "manager",
  listKeys: "viewer",
  getKey: "viewer",
  updateKey: "manager",
  rotateKey: "manager",
  revokeKey: "manager",
  findKey: "manager",
  listWorkers: "viewer",
  getWorker: "viewer",
  updateWorker: "manager",
  dropCard: "manager",
  mergeWorkers: "manager",
  eraseWorker: "manager",
  getErasure: "manager",
  findErasure: "manager",
  allowWorkerAgain: "manager",
  getRequest: "viewer",
  listRequests: "viewer",
  watchRequests: "viewer",
  createToken: "manager",
  listTokens: "manager",
  revokeToken: "manager",
  listAuditEntries: "manager",
  listInstances: "viewer",
};

const ranks: Readonly<Record<Role, number>> = { viewer: 0, manager: 1, operator: 2 };

export const reaches = (role: Role, least: Role): boolean => ranks[role] >= ranks[least];
