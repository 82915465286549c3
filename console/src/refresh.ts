import { createConnectQueryKey } from "@connectrpc/connect-query";
import { useQueryClient } from "@tanstack/react-query";
import { Admin } from "../../src/gen/ingest/admin/v1/admin_pb.js";

/** Reads again what a change may have changed: everything on the page that the administration API answered. */
export function useRefresh(): () => Promise<void> {
  const client = useQueryClient();
  return () => client.invalidateQueries({ queryKey: createConnectQueryKey({ schema: Admin, cardinality: undefined }) });
}
