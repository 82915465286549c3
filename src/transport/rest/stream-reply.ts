import { streamHeaders } from "../http/answer-headers.ts";
import type { RouteRequest, StreamReply } from "../http/route.ts";

/** How a stream is written over REST. */
interface StreamFormat {
  readonly type: string;
  message(json: string, resumeToken: string): string;
  error(json: string): string;
}

const lines: StreamFormat = {
  type: "application/x-ndjson",
  message: (json) => `${json}\n`,
  error: (json) => `${json}\n`,
};

/** The name of the server-sent event that ends a stream with an error. */
const streamErrorEvent = "stream-error";

const serverSentEvents: StreamFormat = {
  type: "text/event-stream",
  message: (json, resumeToken) => `id: ${resumeToken}\ndata: ${json}\n\n`,
  // EventSource itself uses the name `error`, without data.
  error: (json) => `event: ${streamErrorEvent}\ndata: ${json}\n\n`,
};

const formatFor = ({ headers: { accept = "" } }: RouteRequest): StreamFormat =>
  accept.includes(serverSentEvents.type) ? serverSentEvents : lines;

/** A browser's EventSource reconnects to its first address, and says here which message was the last. */
export const lastEventIdOf = (request: RouteRequest): string | undefined =>
  formatFor(request) === serverSentEvents ? request.headers["last-event-id"]?.toString() || undefined : undefined;

/**
 * Answers with a stream in the format that the caller accepts.
 * @throws what the stream throws before its first message.
 */
export async function streamReply<Message extends { readonly resumeToken: string }>(
  request: RouteRequest,
  messages: AsyncGenerator<Message, void>,
  jsonOf: (message: Message) => unknown,
): Promise<StreamReply> {
  const format = formatFor(request);
  const first = await messages.next();
  return {
    status: 200,
    headers: { "content-type": `${format.type}; charset=utf-8`, ...streamHeaders },
    body: written(first, messages, format, jsonOf, (error) => String(request.errorReply(error).body)),
  };
}

/** The stream as text. An error becomes its last line, because the status has already left. */
async function* written<Message extends { readonly resumeToken: string }>(
  first: IteratorResult<Message, void>,
  messages: AsyncGenerator<Message, void>,
  format: StreamFormat,
  jsonOf: (message: Message) => unknown,
  errorOf: (error: unknown) => string,
): AsyncGenerator<string, void> {
  try {
    for (let next = first; next.done !== true; next = await messages.next()) {
      yield format.message(JSON.stringify(jsonOf(next.value)), next.value.resumeToken);
    }
  } catch (error) {
    yield format.error(errorOf(error));
  } finally {
    await messages.return();
  }
}
