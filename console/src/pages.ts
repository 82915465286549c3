/** How a list finds its next page, for the queries of all lists. */
export const byPageToken = {
  pageParamKey: "pageToken",
  getNextPageParam: ({ nextPageToken }: { readonly nextPageToken: string }) => nextPageToken || undefined,
} as const;
