import { hostname } from "node:os";
import { redactSecrets } from "../redact.ts";
import { say } from "../terminal.ts";

/** Reports the state of the service: as plain text on a terminal, else as a JSON line like those of the log. */
export function announce(message: string, details: object = {}): void {
  if (process.stdout.isTTY) return say(message);
  const line = { level: 30, time: Date.now(), pid: process.pid, hostname: hostname(), ...details };
  say(JSON.stringify({ ...line, msg: redactSecrets(message) }));
}

/** The demo organisation: a file with its key, and the token by which its manager signs in to the console. */
export interface Demo {
  readonly keyFile: string;
  readonly managerToken: string;
}

export interface Started {
  readonly url: string;
  /** Where the console is. */
  readonly adminUrl: string;
  /** Certificate file that callers must trust, for an https URL. */
  readonly certificate: string | undefined;
  /** The next step: call with the demo key in this file, create a first key, or nothing. */
  readonly next: Demo | "make a key" | undefined;
}

/** The next commands, ready to paste into a second terminal. */
export function startLines({ url, adminUrl, certificate, next }: Started): string {
  const rows: [caption: string, ...lines: string[]][] = [["Docs", `${url}/docs`]];
  if (next === "make a key") rows.push(["Next", ...firstKey]);
  else if (next !== undefined) {
    rows.push(["Console", `${adminUrl}/console/`, `Sign in with ${next.managerToken}`]);
    rows.push(["Send", ...sendCall(url, next.keyFile, certificate)]);
    rows.push(["See it", "npx ingest tail   # start it first, then send again"]);
  }
  rows.push(["Stop", "Ctrl-C"]);
  const text = rows.flatMap(([caption, ...lines]) =>
    lines.map((line, i) => `  ${(i === 0 ? caption : "").padEnd(9)}${line}`),
  );
  return `\n${text.join("\n")}\n`;
}

/** Commands for the first key of an empty database. Each one prints the id for the next. */
export const firstKey = [
  "npx ingest org create --name Acme",
  "npx ingest app create --org ORG_ID --slug crm --name CRM --allow 'ticket.*'",
  "npx ingest key create --app APP_ID",
];

/** A call that stores one event, on several lines so that it fits a terminal. */
export function sendCall(url: string, keyFile: string, certificate?: string): string[] {
  const trust = certificate === undefined ? "" : ` --cacert ${quoted(certificate)}`;
  const event = { eventType: "ticket.resolved", category: "project_management", actor: { externalId: "crm-user-42" } };
  return [
    `curl${trust} ${url}/api/v1/ingest/events \\`,
    `  -H "Authorization: Bearer $(cat ${quoted(keyFile)})" -H "Content-Type: application/json" \\`,
    `  -d '${JSON.stringify({ events: [event] })}'`,
  ];
}

const quoted = (text: string) => (/^[\w./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);
