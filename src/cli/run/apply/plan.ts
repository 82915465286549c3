import { isDeepStrictEqual } from "node:util";
import { timestampFromDate, type Timestamp } from "@bufbuild/protobuf/wkt";
import {
  type App,
  AppSchema,
  type Key,
  KeySchema,
  KeyStatus,
  type Organization,
  OrganizationSchema,
  Scope,
} from "../../../gen/ingest/admin/v1/admin_pb.js";
import { timelineLimits } from "../../../limits.ts";
import { restJson } from "../../../message-json.ts";
import { CommandError } from "../../../serve/exit.ts";
import { escapeControls } from "../../../terminal.ts";
import type { AdminClient } from "../../../transport/api/admin-in-process.ts";
import { given, maskOf } from "../../client.ts";
import type { WantedApp, WantedKey, WantedOrganization } from "./file.ts";
import { type SecretFiles, takenError } from "./secrets.ts";

/** One change, and how it is made. */
export interface Step {
  readonly action: "create" | "update" | "delete" | "revoke";
  readonly kind: "organisation" | "app" | "key";
  /** Names from the organisation down, such as `Acme/crm/Build server`. */
  readonly name: string;
  /** Such as `allow: ["a.b"] → ["a.*"]`. */
  readonly changes: readonly string[];
  readonly run: () => Promise<void>;
}

export interface Plan {
  readonly steps: readonly Step[];
  /** Apps and keys that the file lacks, and that no step removes. */
  readonly left: readonly string[];
}

export interface PlanOptions {
  /** Removes apps and keys that the file lacks. */
  readonly prune: boolean;
  /** Undefined if no key can be created. */
  readonly secrets: SecretFiles | undefined;
}

/** Compares the wanted state with the installation. Changes nothing. */
export async function planOf(
  admin: AdminClient,
  wanted: readonly WantedOrganization[],
  options: PlanOptions,
): Promise<Plan> {
  const planning = new Planning(admin, options);
  for (const one of wanted) await planning.organization(one);
  return planning;
}

/** An object that an earlier step creates has no id before that. */
interface Place {
  readonly name: string;
  id: string | undefined;
}

const idOf = ({ id, name }: Place): string => {
  if (id === undefined) throw new Error(`'${name}' is not created yet`);
  return id;
};

type Members = Readonly<Record<string, unknown>>;

class Planning implements Plan {
  readonly steps: Step[] = [];
  readonly left: string[] = [];
  readonly #admin: AdminClient;
  readonly #options: PlanOptions;
  /** Files of the new keys' secrets. */
  readonly #paths = new Set<string>();
  #organizations: Organization[] | undefined;

  constructor(admin: AdminClient, options: PlanOptions) {
    this.#admin = admin;
    this.#options = options;
  }

  async organization({ id, apps, ...wanted }: WantedOrganization): Promise<void> {
    const admin = this.#admin;
    const found =
      id === undefined
        ? await this.#organizationNamed(wanted.name as string)
        : await admin.getOrganization({ organizationId: id });
    const place: Place = { name: wanted.name ?? found?.name ?? "", id: found?.id };
    const named = { kind: "organisation", name: place.name } as const;
    if (found === undefined) {
      this.#create(named, wanted, async () => {
        const request = { ...withoutNull(wanted), name: place.name };
        place.id = (await admin.createOrganization(request)).id;
      });
    } else {
      const { etag, id: organizationId } = found;
      this.#update(named, restJson(OrganizationSchema, found), wanted, async (members, updateMask) => {
        await admin.updateOrganization({ organizationId, ...withoutNull(members), updateMask, etag });
      });
    }
    if (apps === undefined) return;
    const existing =
      found === undefined
        ? []
        : await all(
            (page) => admin.listApps({ ...page, organizationId: found.id }),
            ({ apps }) => apps,
          );
    for (const app of apps)
      await this.#app(
        place,
        app,
        existing.find(({ slug }) => slug === app.slug),
      );
    for (const app of existing.filter(({ slug }) => !apps.some((one) => one.slug === slug))) {
      this.#remove({ action: "delete", kind: "app", name: `${place.name}/${app.slug}` }, async () => {
        await admin.deleteApp({ appId: app.id, etag: app.etag });
      });
    }
  }

  /** @throws CommandError if several organisations have the name. */
  async #organizationNamed(name: string): Promise<Organization | undefined> {
    this.#organizations ??= await all(
      (page) => this.#admin.listOrganizations(page),
      ({ organizations }) => organizations,
    );
    const [found, ...others] = this.#organizations.filter((one) => one.name === name);
    if (found === undefined || others.length === 0) return found;
    const ids = [found, ...others].map(({ id }) => id).join(", ");
    throw refusal(`Several organisations have the name '${name}': ${ids}. Give the id of the one that you mean.`);
  }

  async #app(organization: Place, { keys, ...wanted }: WantedApp, found: App | undefined): Promise<void> {
    const admin = this.#admin;
    const place: Place = { name: `${organization.name}/${wanted.slug}`, id: found?.id };
    const named = { kind: "app", name: place.name } as const;
    if (found === undefined) {
      this.#create(named, wanted, async () => {
        place.id = (await admin.createApp({ ...given(wanted), organizationId: idOf(organization) })).id;
      });
    } else {
      const { etag, id: appId } = found;
      this.#update(named, restJson(AppSchema, found), wanted, async (members, updateMask) => {
        await admin.updateApp({ appId, ...members, updateMask, etag });
      });
    }
    if (keys === undefined) return;
    const existing =
      found === undefined
        ? []
        : await all(
            (page) => admin.listKeys({ ...page, appId: found.id }),
            ({ keys }) => keys,
          );
    const kept = new Set<Key>();
    for (const key of keys) {
      const known = keyNamed(key.name, existing, place.name);
      if (known !== undefined) kept.add(known);
      await this.#key(organization, place, wanted.slug, key, known);
    }
    // A rotating key ends by itself.
    for (const key of existing.filter((one) => one.status === KeyStatus.ACTIVE && !kept.has(one))) {
      this.#remove({ action: "revoke", kind: "key", name: `${place.name}/${key.name || key.hint}` }, async () => {
        await admin.revokeKey({ keyId: key.id });
      });
    }
  }

  async #key(organization: Place, app: Place, slug: string, wanted: WantedKey, found: Key | undefined): Promise<void> {
    const admin = this.#admin;
    const { secrets } = this.#options;
    const named = { kind: "key", name: `${app.name}/${wanted.name}` } as const;
    const path = secrets?.pathOf(organization.name, slug, wanted.name);
    const isLost = path !== undefined && (await secrets?.isPending(path)) === true;
    if (found !== undefined && !isLost) {
      const { etag, id: keyId, test } = found;
      if (wanted.test !== undefined && wanted.test !== test) {
        const what = test ? "is a test key" : "is no test key";
        throw refusal(`The key '${named.name}' ${what}, and cannot change that. Give the new one another name.`);
      }
      const current = { scopes: [], ...restJson(KeySchema, found) };
      this.#update(named, current, wanted, async (members, updateMask) => {
        await admin.updateKey({ keyId, ...keyMembers(members as never), updateMask, etag });
      });
      return;
    }
    if (path !== undefined) {
      if (this.#paths.has(path))
        throw new CommandError(`The secrets of two keys would go to ${path}: rename one of them.`);
      this.#paths.add(path);
      if ((await secrets?.isTaken(path)) === true) throw takenError(path);
    }
    if (found !== undefined) {
      const lost = {
        action: "revoke",
        kind: "key",
        name: named.name,
        changes: ["an earlier run has lost its secret"],
      } as const;
      this.steps.push({ ...lost, run: async () => void (await admin.revokeKey({ keyId: found.id })) });
    }
    this.#create(
      named,
      wanted,
      async () => {
        if (secrets === undefined || path === undefined) throw new Error("a new key needs a file");
        await secrets.reserve(path);
        const { secret } = await admin.createKey({
          ...keyMembers(wanted),
          appId: idOf(app),
          test: wanted.test === true,
        });
        await secrets.write(path, secret as string);
      },
      path === undefined ? [] : [`secret in ${path}`],
    );
  }

  #create(
    named: Pick<Step, "kind" | "name">,
    wanted: Members,
    run: Step["run"],
    further: readonly string[] = [],
  ): void {
    const changes = Object.entries(given(wanted)).map(([member, value]) => `${member}: ${text(value)}`);
    this.steps.push({ action: "create", ...named, changes: [...changes, ...further], run });
  }

  /** Changes the members that differ, if any does. */
  #update(
    named: Pick<Step, "kind" | "name">,
    current: Members,
    wanted: Members,
    run: (members: Members, mask: ReturnType<typeof maskOf>) => Promise<void>,
  ): void {
    const differing = Object.entries(given(wanted)).filter(([member, value]) => !isSame(current[member], value));
    if (differing.length === 0) return;
    const changes = differing.map(([member, value]) => `${member}: ${text(current[member])} → ${text(value)}`);
    const mask = maskOf(differing.map(([member]) => member));
    this.steps.push({ action: "update", ...named, changes, run: () => run(Object.fromEntries(differing), mask) });
  }

  #remove(step: Omit<Step, "changes" | "run">, run: Step["run"]): void {
    if (this.#options.prune) this.steps.push({ ...step, changes: [], run });
    else this.left.push(`${step.kind} ${step.name}`);
  }
}

/** A name may have line breaks, which must not look like further messages. */
const refusal = (text: string) => new CommandError(escapeControls(text));

/** The key that works under this name, else the one that has expired; none that another key has replaced. */
function keyNamed(name: string, keys: readonly Key[], app: string): Key | undefined {
  const ofName = keys.filter((key) => key.name === name);
  const active = ofName.filter(({ status }) => status === KeyStatus.ACTIVE);
  const isExpired = ({ status, replacedBy }: Key) => status === KeyStatus.EXPIRED && replacedBy === undefined;
  if (active.length <= 1) return active[0] ?? ofName.find(isExpired);
  const ids = active.map(({ id }) => id).join(", ");
  throw refusal(`Several keys of '${app}' have the name '${name}': ${ids}. Rename or revoke all but one.`);
}

/** A key's members as its requests take them. */
const keyMembers = ({ name, scopes, eventTypes, cidrs, expiresAt }: Partial<WantedKey>) =>
  given({
    ...{ name, eventTypes, cidrs },
    scopes: scopes?.map((scope) => Scope[scope.toUpperCase() as "READ"]),
    expiresAt: timestampOf(expiresAt),
  });
const timestampOf = (time: Date | null | undefined): Timestamp | undefined =>
  time === null || time === undefined ? undefined : timestampFromDate(time);

/** Without the members that are cleared: the mask names them. */
const withoutNull = (members: Members) =>
  Object.fromEntries(Object.entries(members).filter(([, value]) => value !== null && value !== undefined));

/** The order in a list means nothing. */
const isSame = (current: unknown, wanted: unknown): boolean =>
  isDeepStrictEqual(comparable(current), comparable(wanted));

function comparable(value: unknown): unknown {
  if (value instanceof Date) return value.getTime();
  if (Array.isArray(value)) return new Set(value);
  if (typeof value === "string" && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value)) return Date.parse(value);
  return value ?? null;
}

const text = (value: unknown) => JSON.stringify(value ?? null);

/** Every row of a list. */
async function all<Answer extends { readonly nextPageToken: string }, Row>(
  list: (page: { pageSize: number; pageToken: string }) => Promise<Answer>,
  rowsOf: (answer: Answer) => readonly Row[],
): Promise<Row[]> {
  const rows: Row[] = [];
  for (let pageToken = ""; ;) {
    const page = await list({ pageSize: timelineLimits.rowsMax, pageToken });
    rows.push(...rowsOf(page));
    pageToken = page.nextPageToken;
    if (pageToken === "") return rows;
  }
}
