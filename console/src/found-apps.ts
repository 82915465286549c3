import { useInfiniteQuery } from "@connectrpc/connect-query";
import { useEffect } from "react";
import { Admin } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { byPageToken } from "./pages.ts";

/** The apps whose name or slug has a part. The API does not search apps, so this reads all of them, while it is asked. */
export function useFoundApps(organizationId: string, part: string) {
  const { data, error, refetch, hasNextPage, isFetching, fetchNextPage } = useInfiniteQuery(
    Admin.method.listApps,
    { organizationId, pageSize: 500, pageToken: "" },
    { ...byPageToken, enabled: part !== "", staleTime: 60_000 },
  );
  useEffect(() => {
    if (part !== "" && hasNextPage && !isFetching && error === null) void fetchNextPage();
  }, [part, hasNextPage, isFetching, error, fetchNextPage]);
  const wanted = part.toLowerCase();
  const apps = data?.pages.flatMap((page) => page.apps);
  const found = apps?.filter(({ name, slug, id }) => `${name}\n${slug}\n${id}`.toLowerCase().includes(wanted));
  return { data: found, error, refetch, isLooking: hasNextPage };
}
