import { Fault } from "../errors.ts";

/** What a key is for: to send, or to read what was sent. */
export const scopes = ["ingest", "read"] as const;
export type Scope = (typeof scopes)[number];

/** The scopes that each RPC takes, whatever the protocol. A key of either kind may ask who it is. */
const scopesOfRpc: Readonly<Record<string, readonly Scope[]>> = {
  Ping: scopes,
  Events: ["ingest"],
  Snapshots: ["ingest"],
  ListEvents: ["read"],
  ListSnapshots: ["read"],
  WatchEvents: ["read"],
};

/**
 * Refuses a key that is not for this RPC. The reference has no code for that: to the calls it describes, a key that
 * cannot send does not exist (`invalid_key`); the calls outside it say what is the matter (`forbidden_scope`).
 * @throws Fault invalid_key for a read key on Events and Snapshots, forbidden_scope for an ingest key on Timeline.
 */
export function checkScope(rpc: string, scope: Scope, keyHint: string): void {
  const allowed = scopesOfRpc[rpc];
  if (allowed === undefined) throw new Error(`no scope is declared for the RPC '${rpc}'`);
  if (allowed.includes(scope)) return;
  const message = `The API key ${keyHint} has the scope '${scope}'; ${rpc} needs a key with the scope '${allowed[0]}'.`;
  throw new Fault(allowed[0] === "ingest" ? "invalid_key" : "forbidden_scope", message);
}
