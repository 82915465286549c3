import type { DescMessage, DescMethodUnary, MessageInitShape } from "@bufbuild/protobuf";
import { useQuery } from "@connectrpc/connect-query";
import { keepPreviousData } from "@tanstack/react-query";
import { useState } from "react";
import { useKept } from "./kept.ts";

/** How a list finds its next page, for lists that grow. */
export const byPageToken = {
  pageParamKey: "pageToken",
  getNextPageParam: ({ nextPageToken }: { readonly nextPageToken: string }) => nextPageToken || undefined,
} as const;

/** The pages of a list, without their rows. */
export interface Pages {
  readonly error: unknown;
  readonly isLoading: boolean;
  readonly refetch: () => unknown;
  /** From 1. */
  readonly page: number;
  readonly isLast: boolean;
  readonly isBusy: boolean;
  readonly onTurn: (page: number) => void;
}

interface PagesOptions {
  /** Of the list, among those of its screen. */
  readonly name?: string;
  /** Whether the filters are about a person. */
  readonly isPersonal?: boolean;
}

/** A list by one page at a time, so that reading it, drawing it and refreshing it cost the same at any length. */
export function usePages<I extends DescMessage, O extends DescMessage>(
  method: DescMethodUnary<I, O>,
  filters: MessageInitShape<I>,
  { name = method.name, isPersonal = false }: PagesOptions = {},
) {
  const list = JSON.stringify(filters);
  const first = { list, tokens: [""] };
  const [kept, ofScreen] = [useKept(name, first), useState(first)];
  const [place, setPlace] = isPersonal ? ofScreen : kept;
  // Other filters make another list.
  const tokens = place.list === list ? place.tokens : [""];
  const request = { ...filters, pageToken: tokens.at(-1) } as MessageInitShape<I>;
  const query = useQuery(method, request, tokens.length > 1 ? { placeholderData: keepPreviousData } : {});
  const { nextPageToken = "" } = (query.data ?? {}) as { nextPageToken?: string };
  const pages: Pages = {
    error: query.error,
    isLoading: query.data === undefined,
    refetch: query.refetch,
    page: tokens.length,
    isLast: nextPageToken === "",
    isBusy: query.isPlaceholderData,
    onTurn: (page) =>
      setPlace({ list, tokens: page > tokens.length ? [...tokens, nextPageToken] : tokens.slice(0, page) }),
  };
  return { data: query.data, pages };
}
