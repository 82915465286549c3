import { Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-web";
import { ErrorInfoSchema, HelpSchema, RequestInfoSchema } from "../../src/gen/google/rpc/error_details_pb.js";
import { Admin } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { Timeline } from "../../src/gen/ingest/v1/timeline_pb.js";
import { freshToken } from "./oidc.ts";
import { isRenewalDue, session } from "./session.ts";
import { safeText } from "./format.ts";
import { text } from "./text.ts";

/** The service that serves the console; it may lie below a path. */
const baseUrl = new URL("..", document.baseURI).href.replace(/\/$/, "");

const authorize: Interceptor = (next) => async (request) => {
  const token = await freshToken();
  if (token !== undefined) request.header.set("authorization", `Bearer ${token}`);
  const failed = (error: unknown) => {
    const { code } = problemOf(error);
    // A stream outlives its token, and the next call renews it; a late answer says nothing about a newer session.
    if (isEnding(code) && session.token() === token && !isRenewalDue()) session.end(code);
    return error;
  };
  try {
    const response = await next(request);
    return response.stream ? { ...response, message: observed(response.message, failed) } : response;
  } catch (error) {
    throw failed(error);
  }
};

/** The messages of a stream. Its error comes after its head. */
async function* observed<T>(messages: AsyncIterable<T>, failed: (error: unknown) => unknown): AsyncGenerator<T> {
  try {
    yield* messages;
  } catch (error) {
    throw failed(error);
  }
}

const endings: ReadonlySet<string> = new Set(["invalid_key", "key_revoked", "key_expired", "missing_authorization"]);
/** Whether the credential never works again after an error of this code. */
export const isEnding = (code: string): boolean => endings.has(code);

export const transport = createConnectTransport({ baseUrl, useHttpGet: false, interceptors: [authorize] });
export const admin = createClient(Admin, transport);

/** The timeline as the holder of a key sees it. @param ingestUrl of the settings. */
export const timelineFor = (key: string, ingestUrl: string) => {
  const send: Interceptor = (next) => (request) => {
    request.header.set("authorization", `Bearer ${key}`);
    return next(request);
  };
  return createClient(Timeline, createConnectTransport({ baseUrl: ingestUrl, interceptors: [send] }));
};

export const serviceUrl = baseUrl;

/** An error in the API's terms. */
export interface Problem {
  /** The API's code, such as `not_found`; `offline` if no answer came. */
  readonly code: string;
  readonly message: string;
  readonly requestId: string | undefined;
  /** The page about the code. */
  readonly docsUrl: string | undefined;
  /** Whether trying again may help. */
  readonly isPassing: boolean;
}

export function problemOf(thrown: unknown): Problem {
  const error = ConnectError.from(thrown);
  const reason = error.findDetails(ErrorInfoSchema)[0]?.reason;
  const isPassing = [Code.Unavailable, Code.ResourceExhausted, Code.DeadlineExceeded].includes(error.code);
  const isOffline = reason === undefined && (error.cause instanceof TypeError || error.code === Code.Unavailable);
  return {
    code: reason ?? (isOffline ? "offline" : Code[error.code]),
    // The API's own may quote what a caller sent.
    message: isOffline ? text.states.offline : safeText(error.rawMessage),
    requestId: error.findDetails(RequestInfoSchema)[0]?.requestId,
    docsUrl: error.findDetails(HelpSchema)[0]?.links[0]?.url,
    isPassing: isPassing || reason === undefined,
  };
}
