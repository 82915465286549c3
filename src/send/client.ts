import { connect } from "node:tls";
import { z } from "zod";
import { withoutEndSlashes } from "../addresses.ts";
import { type Answer, answerOf, type Failure, failureOf, type Reply } from "./answers.ts";
import { jsonOf } from "./json.ts";
import type { SentLine, SourceKind } from "./kinds.ts";

const replyMs = 30_000;

/** More than any answer of Ingest. */
const replyBytesMax = 16_777_216;

/** Never throws. */
export type Call = (
  path: string,
  request?: { readonly headers: Readonly<Record<string, string>>; readonly body: string },
) => Promise<Reply | Failure>;

/** Never throws. */
export type Post = (lines: readonly SentLine[]) => Promise<Answer>;

/** @throws Error that says what is allowed. */
export function parseBaseUrl(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url === undefined || !/^https?:\/\//i.test(text)) {
    throw new Error("must begin with http:// or https://, such as http://localhost:8080");
  }
  if (url.username !== "" || url.password !== "") throw new Error("must not have a user name or password");
  if (url.search !== "" || url.hash !== "") throw new Error("must not have a query or a fragment");
  return url;
}

export const createPoster =
  (call: Call, kind: SourceKind): Post =>
  async (lines) => {
    const [{ idempotencyKey } = {}] = lines;
    const headers = {
      "content-type": "application/json",
      ...(idempotencyKey === undefined ? {} : { "idempotency-key": idempotencyKey }),
    };
    const reply = await call(kind.path, { headers, body: kind.bodyOf(lines) });
    return "kind" in reply ? reply : answerOf(reply, kind, lines.length);
  };

/** What a key belongs to, as two names for messages and files: events belong to an app, timelines to an organisation. */
export interface KeyOwner {
  readonly kind: "owner";
  readonly app: string;
  readonly organization: string;
}

const pingShape = z.object({ organizationId: z.string(), app: z.object({ id: z.string() }) });

/** Asks the service what the key belongs to. Never throws. */
export async function ownerOf(call: Call, key: string): Promise<KeyOwner | Failure> {
  const reply = await call("/api/v1/ingest/ping");
  if ("kind" in reply) return reply;
  const { data } = reply.status === 200 ? pingShape.safeParse(jsonOf(reply.text)) : {};
  if (data === undefined) return failureOf(reply);
  // Test keys have a timeline of their own.
  const suffix = key.startsWith("wp_test_") ? " (test)" : "";
  return { kind: "owner", app: data.app.id + suffix, organization: data.organizationId + suffix };
}

/**
 * Posts if there is a body, else gets. Node's fetch keeps and shares the connections.
 * @param timeout makes the signal of each request. Default: after `replyMs`.
 */
export function createCaller(
  baseUrl: string,
  key: string,
  timeout: () => AbortSignal = () => AbortSignal.timeout(replyMs),
): Call {
  const base = parseBaseUrl(baseUrl);
  const root = withoutEndSlashes(base.href);
  let hasAnswered = false;
  return async (path, request) => {
    try {
      const response = await fetch(root + path, {
        method: request === undefined ? "GET" : "POST",
        headers: { authorization: `Bearer ${key}`, ...request?.headers },
        body: request?.body ?? null,
        // A redirected POST could become a GET, or take the key to another host.
        redirect: "manual",
        signal: timeout(),
      });
      hasAnswered = true;
      return {
        status: response.status,
        text: await textOf(response),
        retryAfter: response.headers.get("retry-after"),
        location: response.headers.get("location"),
        isReplay: response.headers.has("idempotency-replayed"),
      };
    } catch (error) {
      // A host name that worked before may come back. One that never worked is misspelt.
      if (!hasAnswered && codeOf(error as Error) === "ENOTFOUND") {
        return { kind: "mistake", message: `There is no host ${base.hostname}. Check --url.` };
      }
      return answerOfFailure(error as Error, base);
    }
  };
}

async function textOf(response: Response): Promise<string> {
  const chunks: Uint8Array[] = [];
  let bytes = 0;
  for await (const chunk of response.body ?? []) {
    bytes += chunk.length;
    if (bytes > replyBytesMax) throw new Error(`the answer has more than ${replyBytesMax} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString();
}

const codeOf = (error: Error) => ((error.cause ?? error) as NodeJS.ErrnoException).code;

async function answerOfFailure(error: Error, base: URL): Promise<Failure> {
  const cause = (error.cause ?? error) as NodeJS.ErrnoException;
  const { code = "", message } = cause;
  const host = base.host;
  if (message === "bad port") {
    return {
      kind: "mistake",
      message: `--url has port ${base.port}, which Node's fetch refuses. Give the service another.`,
    };
  }
  if (plainPortCodes.has(code)) {
    return { kind: "mistake", message: `${host} does not speak TLS; use http:// in --url.` };
  }
  if (certificatePattern.test(code)) {
    const trust = "NODE_EXTRA_CA_CERTS can name the file of an authority to trust.";
    return { kind: "mistake", message: `The certificate of ${host} is not trusted: ${code}. ${trust}` };
  }
  if (base.protocol === "http:" && hangUpPattern.test(code) && (await speaksTls(base))) {
    return { kind: "mistake", message: `${host} speaks TLS; use https:// in --url.` };
  }
  // For a name with several addresses, the AggregateError has no message.
  const trouble = firstLineOf(message) || code || error.name;
  return { kind: "none", trouble };
}

const firstLineOf = (text: string) => text.split("\n", 1)[0]?.trim() ?? "";

/** Errors of a TLS handshake with a port that speaks plain text. */
const plainPortCodes: ReadonlySet<string> = new Set([
  "ERR_SSL_WRONG_VERSION_NUMBER",
  "ERR_SSL_PACKET_LENGTH_TOO_LONG",
  "ERR_SSL_HTTP_REQUEST",
]);

/** Node's codes for refused certificates. The handshake ends before anything is sent. */
const certificatePattern =
  /^(ERR_TLS_CERT_|CERT_|CRL_|SELF_SIGNED_|DEPTH_ZERO_|UNABLE_TO_|HOSTNAME_MISMATCH|INVALID_CA|INVALID_PURPOSE|PATH_LENGTH_EXCEEDED)/;

/** Errors of plain HTTP on a TLS port: the port hangs up, or sends an alert, which is not HTTP. */
const hangUpPattern = /^(UND_ERR_SOCKET|ECONNRESET|EPIPE|HPE_)/;

const tlsProbeMs = 3_000;

function speaksTls({ hostname, port }: URL): Promise<boolean> {
  const { promise, resolve } = Promise.withResolvers<boolean>();
  const host = hostname.replace(/^\[|\]$/g, "");
  // This only checks for TLS and sends nothing, so it need not verify the certificate.
  const socket = connect({ host, port: Number(port || 80), rejectUnauthorized: false }, () => resolve(true));
  socket.setTimeout(tlsProbeMs, () => resolve(false));
  socket.once("error", () => resolve(false));
  return promise.finally(() => socket.destroy());
}
