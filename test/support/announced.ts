/** The text of a printed line; the service's JSON lines have it as `msg`. */
export function messageOf(line: string): string {
  if (!line.startsWith("{")) return line;
  try {
    return String(JSON.parse(line).msg);
  } catch {
    return line;
  }
}

/** The loopback address in a line that says where a process listens. */
export const listeningUrl = (line: string): string | undefined =>
  /^Listening on (.*)$/.exec(messageOf(line))?.[1]?.replace("localhost", "127.0.0.1");

/** The loopback address for operators in such a line. */
export const operatorsUrl = (line: string): string | undefined =>
  /^For operators: (.*)\/metrics$/.exec(messageOf(line))?.[1]?.replace("localhost", "127.0.0.1");
