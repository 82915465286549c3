import { useMutation } from "@connectrpc/connect-query";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { useSyncExternalStore } from "react";
import { Admin, Scope } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { whenSessionEnds } from "./session.ts";

/** Keys that may read, by organisation. They live in the page's memory, and for an hour. */
const keys = new Map<string, string>();
const listeners = new Set<() => void>();
const aliveMs = 3_600_000;
whenSessionEnds(() => keys.clear());

const subscribe = (listener: () => void) => {
  listeners.add(listener);
  return () => void listeners.delete(listener);
};

/** The timeline takes keys, not access tokens. A manager makes one here, for an hour, which the audit shows. */
export function useReadKey(organizationId: string) {
  const key = useSyncExternalStore(subscribe, () => keys.get(organizationId));
  const { mutate, isPending, error } = useMutation(Admin.method.createKey, {
    onSuccess({ secret, key: created }) {
      if (secret !== undefined) keys.set(created?.organizationId ?? organizationId, secret);
      for (const listener of listeners) listener();
    },
  });
  const make = (appId: string) =>
    mutate({
      appId,
      name: "console",
      scopes: [Scope.READ],
      expiresAt: timestampFromMs(Date.now() + aliveMs),
      idempotencyKey: crypto.randomUUID(),
    });
  return { key, make, isPending, error };
}
