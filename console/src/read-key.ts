import { useMutation } from "@connectrpc/connect-query";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { useSyncExternalStore } from "react";
import { Admin, Scope } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { useRepeatable } from "./repeatable.ts";
import { whenSessionEnds, whileSessionLasts } from "./session.ts";

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
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.createKey, {
    onMutate: whileSessionLasts,
    onSuccess({ secret, key: created }, _, isMine) {
      repeatable.answered();
      if (secret !== undefined && isMine()) keys.set(created?.organizationId ?? organizationId, secret);
      for (const listener of listeners) listener();
    },
  });
  const make = (appId: string) =>
    mutate(
      // In another hour it asks for another expiry.
      repeatable.of([appId, Math.floor(Date.now() / aliveMs)], {
        appId,
        name: "console",
        scopes: [Scope.READ],
        expiresAt: timestampFromMs(Date.now() + aliveMs),
      }),
    );
  return { key, make, isPending, error };
}

/** Drops a key that the service takes no more: it has expired, or somebody revoked it. */
export function dropReadKey(organizationId: string, secret: string): void {
  if (keys.get(organizationId) === secret) keys.delete(organizationId);
  for (const listener of listeners) listener();
}
