import { type ServerResponse, STATUS_CODES } from "node:http";

/** What a response of Node's keeps of its head until the body takes it along; null before there is one. */
interface HeadHolder {
  _header?: string | null;
}

/**
 * Writes the head of an answer whose body follows at once, as Node's `writeHead` does.
 *
 * Where it can it gives Node the whole head as one text instead of header by header, which would be a seventh of what a
 * ping costs. The member that takes it is not documented: where it is missing, and wherever Node has more to decide than
 * that the connection goes on (HTTP/2, its last answer, no body), Node's own way is taken.
 * @param headers with values of the service's own: a caller's text in one could hold the end of its line.
 * @param nowMs for `Date`, in milliseconds.
 */
export function writeHead(
  response: ServerResponse,
  status: number,
  headers: Readonly<Record<string, string>>,
  nowMs: number,
): void {
  if (!isPlain(response, status)) return void response.writeHead(status, headers);
  let lines = "";
  for (const name in headers) lines += `${name}: ${headers[name]}\r\n`;
  const head = `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines}Date: ${dateOf(nowMs)}\r\nConnection: keep-alive\r\n\r\n`;
  response.statusCode = status;
  (response as HeadHolder)._header = head;
}

/** Whether the answer has a body and is not the last of its connection, and nothing is known of its head yet. */
const isPlain = (response: ServerResponse, status: number): boolean =>
  (response as HeadHolder)._header === null &&
  response.shouldKeepAlive &&
  response.getHeaderNames().length === 0 &&
  status >= 200 &&
  status !== 204 &&
  status !== 304;

let datedSecond = 0;
let date = "";

/** As HTTP writes it, made once a second. */
function dateOf(nowMs: number): string {
  const second = Math.floor(nowMs / 1000);
  if (second !== datedSecond) {
    datedSecond = second;
    date = new Date(second * 1000).toUTCString();
  }
  return date;
}
