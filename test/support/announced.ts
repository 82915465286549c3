/** The text of a line that a process printed: the service's lines of JSON carry it as `msg`. */
export function messageOf(line: string): string {
  if (!line.startsWith("{")) return line;
  try {
    return String(JSON.parse(line).msg);
  } catch {
    return line;
  }
}

/** The address of a line that says where a process listens, on loopback. */
export const listeningUrl = (line: string): string | undefined =>
  /^Listening on (.*)$/.exec(messageOf(line))?.[1]?.replace("localhost", "127.0.0.1");

/** The address of a line that says where operators look, on loopback. */
export const operatorsUrl = (line: string): string | undefined =>
  /^For operators: (.*)\/metrics$/.exec(messageOf(line))?.[1]?.replace("localhost", "127.0.0.1");
