import { Fault } from "../errors.ts";

/** What a key may do: send, or read what was sent. */
export const scopes = ["ingest", "read"] as const;
export type Scope = (typeof scopes)[number];

/** The scopes that each RPC takes, on every protocol. A key of either scope may ping. */
const scopesOfRpc: Readonly<Record<string, readonly Scope[]>> = {
  Ping: scopes,
  Events: ["ingest"],
  Snapshots: ["ingest"],
  ListEvents: ["read"],
  ListSnapshots: ["read"],
  WatchEvents: ["read"],
};

/** @throws Fault forbidden_scope for a key of another scope than the RPC needs. */
export function checkScope(rpc: string, scope: Scope, keyHint: string): void {
  const allowed = scopesOfRpc[rpc];
  if (allowed === undefined) throw new Error(`no scope is declared for the RPC '${rpc}'`);
  if (allowed.includes(scope)) return;
  const message = `The API key ${keyHint} has the scope '${scope}'; ${rpc} needs a key with the scope '${allowed[0]}'.`;
  throw new Fault("forbidden_scope", message);
}
