import { Fault } from "../errors.ts";

/** What a key may do: send events, or read them back. */
export const scopes = ["ingest", "read"] as const;
export type Scope = (typeof scopes)[number];

/** The scopes that each RPC accepts, on every protocol. A key of either scope may ping. */
const scopesOfRpc: Readonly<Record<string, readonly Scope[]>> = {
  Ping: scopes,
  Events: ["ingest"],
  Snapshots: ["ingest"],
  ListEvents: ["read"],
  ListSnapshots: ["read"],
  WatchEvents: ["read"],
};

/** @throws Fault forbidden_scope when the key lacks the scope that the RPC needs. */
export function checkScope(rpc: string, scope: Scope, keyHint: string): void {
  const allowed = scopesOfRpc[rpc];
  if (allowed === undefined) throw new Error(`no scope is declared for the RPC '${rpc}'`);
  if (allowed.includes(scope)) return;
  const message = `The API key ${keyHint} has the scope '${scope}'; ${rpc} needs a key with the scope '${allowed[0]}'.`;
  throw new Fault("forbidden_scope", message);
}
