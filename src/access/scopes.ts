import { Fault } from "../errors.ts";
import type { KeyScope } from "../store/keys.ts";

export const scopes = ["ingest", "read"] as const satisfies readonly KeyScope[];
export type Scope = KeyScope;

/** The scopes that each RPC accepts, on every protocol. A key of any scope may ping. */
const scopesOfRpc: Readonly<Record<string, readonly Scope[]>> = {
  Ping: scopes,
  Events: ["ingest"],
  Snapshots: ["ingest"],
  ListEvents: ["read"],
  ListSnapshots: ["read"],
  WatchEvents: ["read"],
};

/** @throws Fault forbidden_scope when the key lacks the scope that the RPC needs. */
export function checkScope(rpc: string, own: readonly Scope[], keyHint: string): void {
  const allowed = scopesOfRpc[rpc];
  if (allowed === undefined) throw new Error(`no scope is declared for the RPC '${rpc}'`);
  if (allowed.some((scope) => own.includes(scope))) return;
  const message = `The API key ${keyHint} has the scope '${own.join("', '")}'; ${rpc} needs a key with the scope '${allowed[0]}'.`;
  throw new Fault("forbidden_scope", message);
}
