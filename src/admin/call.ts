import type { ClientSession, Collection, Db, Filter } from "mongodb";
import type { Identity } from "../access/identity.ts";
import { Fault } from "../errors.ts";
import { Admin } from "../gen/ingest/admin/v1/admin_pb.js";
import type { IdSource } from "../ids.ts";
import { shown } from "../ingest/validate.ts";
import type { Role } from "../store/access-tokens.ts";
import { type AppDocument, appCollection } from "../store/apps.ts";
import type { AuditDocument } from "../store/audit.ts";
import { everyShard } from "../store/database.ts";
import type { GroupCommit } from "../store/group-commit.ts";
import { type KeyDocument, keyCollection } from "../store/keys.ts";
import { type OrganizationDocument, organizationCollection } from "../store/organizations.ts";
import { isLive, type WorkerDocument, workerCollection } from "../store/workers.ts";
import type { Tokens } from "../timeline/tokens.ts";
import type { JobKeeper } from "./job-keeper.ts";
import { type AdminRpc, leastRoles, reaches } from "./roles.ts";
import type { RequestWatches } from "./request-watches.ts";

/** A change that waits for its turn. */
export interface ChangeInTurn {
  /** Callers take turns. */
  readonly callerId: string;
  readonly run: () => Promise<unknown>;
}

/** What the handlers work with, on an instance or in a command. */
export interface AdminServices {
  readonly db: Db;
  readonly ids: IdSource;
  /** The database server's clock, in milliseconds since 1970. */
  readonly now: () => number;
  /** Seals the places of pages. */
  readonly pages: Tokens;
  /** Runs the changes of this process, one after the other. */
  readonly turns: Pick<GroupCommit<ChangeInTurn, unknown>, "submit">;
  /** Days for which the audit keeps an entry; 0 for ever. */
  readonly auditDays: number;
  /** Carries out the jobs that calls begin. */
  readonly jobs: Pick<JobKeeper, "begun">;
  /** Counts open streams; undefined in a command. */
  readonly watches?: RequestWatches | undefined;
  /** Called for each change, after it is durable. */
  readonly onAudit?: ((entry: AuditDocument) => void) | undefined;
}

/** What an adapter knows of a call. */
export interface CallFacts {
  readonly identity: Identity;
  readonly rpc: AdminRpc;
  /** `req_` and a ULID. */
  readonly requestId: string;
  /** The caller's address; empty for a command on the database. */
  readonly peer: string;
  /** The Authorization header, which also seals a kept secret; undefined for a command on the database. */
  readonly authorization: string | undefined;
  /** Aborted when the caller goes away or its deadline passes. */
  readonly signal: AbortSignal;
  /** Checks that the caller may go on; undefined for a command on the database. @throws Fault. */
  readonly recheck?: (() => Promise<void>) | undefined;
}

/** The kinds of objects, with the beginning of their ids and their name in messages. */
export const kinds = {
  organization: { prefix: "org_", name: "organisation" },
  app: { prefix: "app_", name: "app" },
  key: { prefix: "key_", name: "key" },
  worker: { prefix: "wrk_", name: "worker" },
  erasure: { prefix: "ers_", name: "erasure" },
  request: { prefix: "req_", name: "request" },
  token: { prefix: "tok_", name: "access token" },
} as const;
export type Kind = keyof typeof kinds;

/**
 * One call of the administration API. It finds objects as its caller sees them. A handler must find its object here, or
 * call `checkRole`, before it reads or changes anything; `dispatch` refuses to answer otherwise.
 */
export class AdminCall {
  readonly services: AdminServices;
  readonly facts: CallFacts;
  #isChecked = false;

  constructor(services: AdminServices, facts: CallFacts) {
    this.services = services;
    this.facts = facts;
  }

  get identity(): Identity {
    return this.facts.identity;
  }

  get db(): Db {
    return this.services.db;
  }

  /** Whether the caller's role was checked. */
  get isChecked(): boolean {
    return this.#isChecked;
  }

  /** The RPC's name as callers know it, such as `CreateApp`. */
  get rpcName(): string {
    return Admin.method[this.facts.rpc].name;
  }

  get nowDate(): Date {
    return new Date(this.services.now());
  }

  /** Whether the caller may see emails, external ids and metadata. */
  get seesPersonalData(): boolean {
    return this.identity.role !== "viewer";
  }

  /** @throws Fault forbidden_scope if the role does not reach the RPC, or `least` where a part of it needs more. */
  checkRole(least: Role = leastRoles[this.facts.rpc], what: string = this.rpcName): void {
    this.#isChecked = true;
    const { role } = this.identity;
    if (!reaches(role, least)) {
      throw new Fault("forbidden_scope", `Your credential has the role '${role}'; ${what} needs the role '${least}'.`);
    }
  }

  /** Whether an object of this organisation exists for the caller. */
  sees(organizationId: string | undefined): boolean {
    const { organizationId: own } = this.identity;
    return own === undefined || own === organizationId;
  }

  /**
   * The object, if it exists for the caller; then checks the role.
   * @param least the role that this object needs.
   * @throws Fault not_found with one text for objects that do not exist and for those of others.
   */
  visible<T>(kind: Kind, id: string, found: T | null | undefined, organizationId: string | undefined, least?: Role): T {
    if (found === null || found === undefined || !this.sees(organizationId)) throw notFound(kind, id);
    this.checkRole(least);
    return found;
  }

  async organization(id: string, session?: ClientSession): Promise<OrganizationDocument> {
    return this.visible("organization", id, await findOne(organizationCollection(this.db), id, session), id);
  }

  async app(id: string, session?: ClientSession): Promise<AppDocument> {
    const found = await findOne(appCollection(this.db), id, session);
    const app = found?.deletedAt === undefined ? found : null;
    return this.visible("app", id, app, app?.organizationId);
  }

  async key(id: string, session?: ClientSession): Promise<KeyDocument> {
    const key = await findOne(keyCollection(this.db), id, session);
    return this.visible("key", id, key, key?.organizationId);
  }

  /** The worker with this id, which may have been merged into another one. */
  async worker(id: string, session?: ClientSession): Promise<WorkerDocument> {
    const { organizationId } = this.identity;
    const filter = organizationId === undefined ? isLive : { organizationId };
    const worker = id.startsWith(kinds.worker.prefix)
      ? await findOne(workerCollection(this.db), id, session, filter)
      : null;
    return this.visible("worker", id, worker, worker?.organizationId);
  }
}

function findOne<T extends { _id: string }>(
  collection: Collection<T>,
  id: string,
  session: ClientSession | undefined,
  filter: object = {},
) {
  const options = { ...(session === undefined ? { readConcern: "majority" as const } : { session }) };
  const why = everyShard("a caller may know the object's id alone");
  return collection.findOne({ ...filter, _id: id } as Filter<T>, { ...options, ...why }) as Promise<T | null>;
}

export function notFound(kind: Kind, id: string): Fault {
  const { prefix, name } = kinds[kind];
  const hint = id.startsWith(prefix) ? "" : ` Such an id begins with ${prefix}.`;
  return new Fault("not_found", `There is no ${name} with the id ${shown(id)}.${hint}`);
}
