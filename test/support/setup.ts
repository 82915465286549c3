import type { Db } from "mongodb";
import { newApp } from "../../src/admin/apps.ts";
import { newKey } from "../../src/admin/keys.ts";
import { newOrganization } from "../../src/admin/organizations.ts";
import { createIdSource } from "../../src/ids.ts";
import { appCollection } from "../../src/store/apps.ts";
import { settleOnInstances } from "../../src/store/instances.ts";
import { type KeyDocument, type KeyScope, keyCollection } from "../../src/store/keys.ts";
import { type OrganizationDocument, organizationCollection } from "../../src/store/organizations.ts";
import { announce } from "../../src/store/revisions.ts";
import { usageCollection } from "../../src/store/usage.ts";

export type OrganizationSettings = Partial<Omit<OrganizationDocument, "_id" | "createdAt">>;

const ids = createIdSource();

/**
 * Makes organisations, apps and keys in the database, and changes them there. It checks nothing, and costs less than calls
 * of the administration API.
 */
export class Setup {
  readonly #db: Db;

  constructor(db: Db) {
    this.#db = db;
  }

  async createOrganization({ name = "Test", retainDays, ...settings }: OrganizationSettings): Promise<{ id: string }> {
    const id = ids.next("org");
    const document = newOrganization(id, { name, retentionDays: retainDays, ...settings }, new Date());
    await organizationCollection(this.#db).insertOne(document);
    return { id };
  }

  async updateOrganization(id: string, settings: OrganizationSettings): Promise<void> {
    await organizationCollection(this.#db).updateOne({ _id: id }, { $set: settings });
    await announce(this.#db, [id]);
  }

  async createApp(organizationId: string, slug: string, name: string, allow: readonly string[]) {
    const app = newApp(ids.next("app"), { organizationId, slug, name, allow: [...allow] }, new Date());
    await appCollection(this.#db).insertOne(app);
    return { id: app._id, slug, name, allow: app.allow };
  }

  async allowTypes(appId: string, types: readonly string[]): Promise<void> {
    await appCollection(this.#db).updateOne({ _id: appId }, { $addToSet: { allow: { $each: [...types] } } });
    await announce(this.#db, [appId]);
  }

  async denyTypes(appId: string, types: readonly string[]): Promise<void> {
    await appCollection(this.#db).updateOne({ _id: appId }, { $pull: { allow: { $in: [...types] } } });
    await announce(this.#db, [appId]);
  }

  /** A key of the app, which sends unless told otherwise. */
  async createKey(
    appId: string,
    expiresAt?: Date,
    scope: KeyScope = "ingest",
    fields: Partial<KeyDocument> = {},
  ): Promise<{ id: string; key: string }> {
    const app = await appCollection(this.#db).findOne({ _id: appId });
    if (app === null) throw new Error(`there is no app '${appId}'`);
    const settings = { scopes: [scope], expiresAt, test: fields.test };
    const { document, secret } = newKey(ids.next("key"), app, settings, new Date());
    await keyCollection(this.#db).insertOne({ ...document, ...fields });
    await announce(this.#db, [document._id]);
    return { id: document._id, key: secret };
  }

  async revokeKey(id: string): Promise<void> {
    await keyCollection(this.#db).updateOne({ _id: id }, { $set: { revokedAt: new Date() } });
    await announce(this.#db, [id]);
  }

  /** Gives the key a successor, and lets it expire after the grace. */
  async rotateKey(id: string, graceMs: number): Promise<{ id: string; key: string }> {
    const old = await keyCollection(this.#db).findOne({ _id: id });
    const next = await this.createKey(old?.appId ?? "");
    const $set = { replacedBy: next.id, expiresAt: new Date(Date.now() + graceMs) };
    await keyCollection(this.#db).updateOne({ _id: id }, { $set });
    await announce(this.#db, [id]);
    return next;
  }

  /** Waits until every running instance acts on the earlier changes. @throws if one does not. */
  async settle(): Promise<void> {
    const behind = await settleOnInstances(this.#db, 30);
    if (behind.length > 0) throw new Error(`instances have not confirmed the change: ${behind.join("; ")}`);
  }

  /** The charged events of each month, the latest first. */
  usageOf(organizationId: string): Promise<{ month: string; events: number }[]> {
    return usageCollection(this.#db)
      .find({ organizationId })
      .sort({ month: -1 })
      .map(({ month, events }) => ({ month, events }))
      .toArray();
  }
}
