import { queryOptions } from "@tanstack/react-query";
import { serviceUrl } from "./api.ts";

/** What the service says about itself to the console. */
export interface Settings {
  /** The address of the ingest API. */
  readonly ingestUrl: string;
  /** Absent if people sign in with access tokens alone. */
  readonly oidc?: {
    readonly issuer: string;
    readonly clientId: string;
    readonly audience: string;
    readonly scope: string;
    /** Whether the service takes ID tokens; else it takes access tokens. */
    readonly usesIdToken: boolean;
  };
}

export const settingsQuery = queryOptions({
  queryKey: ["settings"],
  staleTime: Number.POSITIVE_INFINITY,
  queryFn: async (): Promise<Settings> => {
    const answer = await fetch("settings.json");
    if (!answer.ok) throw new Error(`settings.json: ${answer.status}`);
    const settings = (await answer.json()) as Settings;
    // It is empty if it is this one.
    return { ...settings, ingestUrl: settings.ingestUrl || serviceUrl };
  },
});
