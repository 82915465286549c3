import { setTimeout as delay } from "node:timers/promises";
import { ConnectError } from "@connectrpc/connect";
import { ErrorInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { WatchRequestsResponseSchema } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { restJson } from "../../src/message-json.ts";
import { adminClient, type AdminProtocol } from "./admin.ts";

export interface WatchQuery {
  readonly organizationId: string;
  readonly appId?: string;
  readonly rejectedOnly?: boolean;
  readonly resumeToken?: string;
}

/** A stream's error, with the API's code. */
export class WatchFailed extends Error {
  readonly code: string;

  constructor({ code, message }: { readonly code: string; readonly message: string }) {
    super(message);
    this.code = code;
  }
}

/** WatchRequests over one protocol. The messages have REST's form. */
export type WatchRequests = (
  url: string,
  token: string,
  query: WatchQuery,
  signal: AbortSignal,
) => AsyncGenerator<any, void>;

const overRest = (accept: string, end: string, jsonOf: (part: string) => any): WatchRequests =>
  async function* (url, token, { organizationId, resumeToken, ...query }, signal) {
    const isSse = accept === "text/event-stream";
    const parameters = new URLSearchParams();
    for (const [name, value] of Object.entries({ ...query, ...(isSse ? {} : { resumeToken }) })) {
      if (value !== undefined) parameters.set(name, String(value));
    }
    const path = `/api/v1/admin/organizations/${organizationId}/requests:watch?${parameters}`;
    const lastEventId: Record<string, string> = isSse && resumeToken ? { "last-event-id": resumeToken } : {};
    const headers = { accept, authorization: `Bearer ${token}`, ...lastEventId };
    const response = await fetch(`${url}${path}`, { headers, signal });
    if (response.status !== 200) throw new WatchFailed(((await response.json()) as any).error);
    let text = "";
    for await (const chunk of (response.body as ReadableStream<Uint8Array>).pipeThrough(new TextDecoderStream())) {
      text += chunk;
      const parts = text.split(end);
      text = parts.pop() as string;
      for (const part of parts) {
        const json = jsonOf(part);
        if (json.error !== undefined) throw new WatchFailed(json.error);
        yield json;
      }
    }
  };

const overRpc = (protocol: AdminProtocol): WatchRequests =>
  async function* (url, token, query, signal) {
    try {
      for await (const message of adminClient(url, token, protocol).watchRequests(query, { signal })) {
        yield restJson(WatchRequestsResponseSchema, message);
      }
    } catch (thrown) {
      const { rawMessage: message, ...error } = ConnectError.from(thrown);
      const code = ConnectError.from(thrown).findDetails(ErrorInfoSchema)[0]?.reason ?? String(error.code);
      throw new WatchFailed({ code, message });
    }
  };

/** Begins again where the stream has ended, as a client should. */
export const resumed = (watch: WatchRequests): WatchRequests =>
  async function* (url, token, query, signal) {
    for (let from: { resumeToken?: string } = {}; !signal.aborted;) {
      try {
        for await (const message of watch(url, token, { ...query, ...from }, signal)) {
          yield message;
          from = { resumeToken: message.resumeToken };
        }
      } catch {
        await delay(200);
      }
    }
  };

export const requestWatches: Readonly<Record<string, WatchRequests>> = {
  "REST lines": overRest("application/x-ndjson", "\n", (line) => JSON.parse(line)),
  "REST server-sent events": overRest("text/event-stream", "\n\n", (event) =>
    JSON.parse(/^data: (.*)$/m.exec(event)?.[1] as string),
  ),
  connect: overRpc("connect"),
  grpc: overRpc("grpc"),
  "grpc-web": overRpc("grpc-web"),
};
