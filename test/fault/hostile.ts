import { setTimeout as sleep } from "node:timers/promises";
import { MongoClient } from "mongodb";
import { hasProc, peakMegabytes, resetPeak, socketsOf, startChild } from "../support/child-service.ts";
import { type Experience, type GoodClient, startGoodClient } from "../support/good-client.ts";
import packageJson from "../../package.json" with { type: "json" };
import type { Attack, Neighbour, Scale } from "./attacks.ts";
import { Setup } from "../support/setup.ts";

/** The service must never need more memory than this, in megabytes. */
export const peakMegabytesMax = 1_024;

/** Limit of the good caller's median during an attack, as a multiple of its calm median. */
export const calmTimesMax = 5;

/** Node's flags in `npm start`. */
const flagsOfStart = (packageJson.scripts.start.match(/--\S+/g) ?? []) as string[];

/** The most connections of the three database pools. */
const poolsMax = 3 * 32;

/** Longest time for the service to release what an attacker has left, in milliseconds. */
const settleMs = 120_000;

export interface AttackReport {
  readonly name: string;
  readonly outcome: string;
  /** Of the service during the attack, in megabytes; NaN if the system does not tell. */
  readonly peakMegabytes: number;
  /** The good caller's experience just before, if the scale leaves time for it. */
  readonly calm: Experience | undefined;
  /** Its experience during the attack. */
  readonly attacked: Experience;
}

export interface HostileRun {
  readonly attacks: readonly AttackReport[];
  /** Everything that must not have happened; empty if there was no harm. */
  readonly problems: readonly string[];
  readonly peakMegabytes: number;
}

/**
 * Runs the attacks one after another on the service, which runs as a process, together with a good caller. It is a
 * problem if the service ends, refuses the good caller, keeps connections or grows without bound.
 */
export async function runHostile(
  mongodbUri: string,
  attacks: readonly Attack[],
  scale: Scale,
  say: (line: string) => void = () => {},
): Promise<HostileRun> {
  const database = `hostile-${process.pid}-${Date.now()}`;
  const client = new MongoClient(mongodbUri);
  const service = await startChild({ MONGODB_URI: mongodbUri, MONGODB_DB: database }, flagsOfStart);
  const problems: string[] = [];
  const reports: AttackReport[] = [];
  try {
    const admin = new Setup(client.db(database));
    const good = startGoodClient(service.url, await newKey(admin, "Good"));
    const bad = { key: await newKey(admin, "Bad"), neighbour: await newNeighbour(admin) };
    const target = { port: service.port, adminUrl: service.adminUrl, ...bad, scale };
    try {
      await sleep(500);
      const { failures } = await good.experience();
      if (failures.length > 0) throw new Error(`the good caller is not served: ${failures.join("; ")}`);
      const base = hasProc ? socketsOf(service.pid) : 0;
      for (const attack of attacks) {
        await attack.prepare?.(target);
        const calm = scale.calmMs > 0 ? await calmOf(good, scale.calmMs) : undefined;
        if (hasProc) resetPeak(service.pid);
        let outcome: string;
        try {
          outcome = await attack.run(target);
        } catch (error) {
          outcome = `FAILED: ${error instanceof Error ? error.message : String(error)}`;
          problems.push(`${attack.name}: ${outcome}`);
        }
        const seen = await good.experience();
        if (seen.failures.length > 0) problems.push(`${attack.name}: the good caller saw ${seen.failures.join("; ")}`);
        if (seen.requests === 0) problems.push(`${attack.name}: the good caller got no answer`);
        const peak = hasProc ? peakMegabytes(service.pid) : Number.NaN;
        if (peak > peakMegabytesMax) problems.push(`${attack.name}: the service had ${Math.round(peak)} MB`);
        // On a shared machine it may be late to say so, as a time may be.
        if (calm !== undefined && seen.unready.length > 0) problems.push(`${attack.name}: ${seen.unready.join("; ")}`);
        const slower = calm === undefined ? 0 : seen.p50Ms / calm.p50Ms;
        if (attack.fillsMachine === undefined && slower > calmTimesMax) {
          problems.push(`${attack.name}: the good caller's p50 was ${slower.toFixed(1)} times its calm one`);
        }
        reports.push({ name: attack.name, outcome, peakMegabytes: peak, calm, attacked: seen });
        say(
          `${attack.name}: ${outcome}; peak ${Math.round(peak)} MB; good caller p50 ${calm?.p50Ms.toFixed(1) ?? "?"} -> ${seen.p50Ms.toFixed(1)} ms, max ${Math.round(seen.maxMs)} ms`,
        );
        if (service.exit() !== undefined) throw new Error(`${attack.name} ended the service:\n${service.tail()}`);
      }
      // The good caller's connections come and go, and the database pools keep their connections.
      const settled = !hasProc || (await within(settleMs, () => socketsOf(service.pid) <= base + 8 + poolsMax));
      if (!settled) problems.push(`${socketsOf(service.pid)} sockets are left; there were ${base} at the beginning`);
      const health = await fetch(`${service.url}/readyz`);
      if (health.status !== 200) problems.push(`/readyz answers ${health.status}`);
    } finally {
      await good.stop();
    }
    const code = await service.stop();
    if (code !== 0) problems.push(`the service stopped with exit code ${code}:\n${service.tail()}`);
  } finally {
    if (service.exit() === undefined) await service.stop();
    await client.db(database).dropDatabase();
    await client.close();
  }
  const peak = Math.max(...reports.map(({ peakMegabytes }) => peakMegabytes));
  return { attacks: reports, problems, peakMegabytes: peak };
}

/** The good caller's experience without attacks. */
async function calmOf(good: GoodClient, calmMs: number): Promise<Experience> {
  // Discard what it saw of the previous attack.
  await good.experience();
  await sleep(calmMs);
  return good.experience();
}

async function newNeighbour(admin: Setup): Promise<Neighbour> {
  const organizationWith = async (count: number) => {
    const { id } = await admin.createOrganization({ name: "Neighbour" });
    const app = await admin.createApp(id, "app", "Neighbour", ["ticket.*"]);
    const keys: string[] = [];
    for (let i = 0; i < count; i++) keys.push((await admin.createKey(app.id)).key);
    return { keys, readKey: (await admin.createKey(app.id, undefined, "read")).key };
  };
  const others: Neighbour["others"][number][] = [];
  for (let i = 0; i < 4; i++) {
    const { keys, readKey } = await organizationWith(1);
    others.push({ key: keys[0] as string, readKey });
  }
  return { ...(await organizationWith(10)), others };
}

async function newKey(admin: Setup, name: string): Promise<string> {
  const { id } = await admin.createOrganization({
    name,
    keyRequestsPerSecond: 10_000,
    organizationRequestsPerSecond: 10_000,
  });
  const app = await admin.createApp(id, "app", name, ["ticket.*"]);
  return (await admin.createKey(app.id)).key;
}

async function within(milliseconds: number, holds: () => boolean): Promise<boolean> {
  for (const end = Date.now() + milliseconds; !holds(); await sleep(100)) if (Date.now() > end) return false;
  return true;
}
