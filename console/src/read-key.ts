import { useMutation } from "@connectrpc/connect-query";
import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { Admin, Scope } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { useRemembered } from "./kept.ts";
import { useRepeatable } from "./repeatable.ts";

const aliveMs = 3_600_000;

/** The timeline takes keys, not access tokens. A manager makes one here, for an hour, which the audit shows. */
export function useReadKey(organizationId: string) {
  const [key, setKey] = useRemembered<string | undefined>(`read key ${organizationId}`, undefined);
  const repeatable = useRepeatable();
  const { mutate, isPending, error } = useMutation(Admin.method.createKey, {
    onSuccess({ secret }) {
      repeatable.answered();
      if (secret !== undefined) setKey(() => secret);
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
  /** Forgets a key that the service takes no more: it has expired, or somebody revoked it. */
  const drop = (secret: string) => setKey((last) => (last === secret ? undefined : last));
  return { key, make, drop, isPending, error };
}
