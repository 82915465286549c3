import { type ServerResponse, STATUS_CODES } from "node:http";

/** What a response of Node's keeps of its head until the body takes it along; null before there is one. */
interface HeadHolder {
  _header?: string | null;
}

/**
 * Gives Node a whole answer, head and body, as one text; it leaves when the response is ended.
 *
 * To write it header by header and then its body would be a sixth of what a ping costs. The member that takes the text is
 * not documented: where it is missing, and wherever Node has more to decide than that the connection goes on (HTTP/2, its
 * last answer, a body that is not ASCII, no body), nothing is done, and Node's own way is to be taken.
 * @param lines all headers but content-length and those of Node's, as `answerLines` has them. With values of the service's
 * own: a caller's text in one could hold the end of its line.
 * @param nowMs for `Date`, in milliseconds.
 * @returns whether it was done.
 */
export function writeWhole(
  response: ServerResponse,
  status: number,
  lines: string,
  body: string,
  nowMs: number,
): boolean {
  if (!isPlain(response, status) || Buffer.byteLength(body) !== body.length) return false;
  response.statusCode = status;
  (response as HeadHolder)._header =
    `HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\n${lines}content-length: ${body.length}\r\n` +
    `Date: ${dateOf(nowMs)}\r\nConnection: keep-alive\r\n\r\n${body}`;
  return true;
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
