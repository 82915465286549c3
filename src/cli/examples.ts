import type { Command } from "commander";

/** Examples for the `--help` of each command. Readers replace the words in capitals. */
const examples: Readonly<Record<string, readonly string[]>> = {
  ingest: [
    "ingest serve",
    "ingest org create --name Acme",
    "ingest app create --org ORG_ID --slug crm --name CRM --allow 'ticket.*'",
    "ingest key create --app APP_ID",
    "ingest tail",
    "INGEST_URL=https://ingest.internal:8081 INGEST_TOKEN=wp_adm_... ingest org list",
  ],
  "ingest serve": ["ingest serve", "PORT=3000 MONGODB_URI='mongodb://a,b,c/?replicaSet=rs0' ingest serve"],
  "ingest migrate": ["MONGODB_URI='mongodb://a,b,c/?replicaSet=rs0' ingest migrate"],
  "ingest check": [
    "ingest check --record /backups/ingest-state.json   # after each backup, revocation and erasure",
    "ingest check --against /backups/ingest-state.json",
    "ingest check --since 2026-04-19T03:00Z",
  ],
  "ingest org create": ["ingest org create --name Acme", "ingest org create --name Acme --quota 100000 --key-rate 50"],
  "ingest org update": ["ingest org update ORG_ID --quota 2000000", "ingest org update ORG_ID --no-api"],
  "ingest org list": ["ingest org list", "ingest org list --json"],
  "ingest org show": ["ingest org show ORG_ID"],
  "ingest org usage": ["ingest org usage ORG_ID", "ingest org usage ORG_ID --by code --month 2026-04"],
  "ingest org traffic": ["ingest org traffic ORG_ID", "ingest org traffic ORG_ID --json"],
  "ingest app create": ["ingest app create --org ORG_ID --slug crm --name CRM --allow 'ticket.*' d.done"],
  "ingest app allow": ["ingest app allow APP_ID deploy.shipped 'build.*'"],
  "ingest app deny": ["ingest app deny APP_ID 'build.*'"],
  "ingest app update": ["ingest app update APP_ID --name 'Help Desk'"],
  "ingest app list": ["ingest app list", "ingest app list --org ORG_ID"],
  "ingest app show": ["ingest app show APP_ID"],
  "ingest app preview": ["ingest app preview APP_ID 'ticket.*' deploy.shipped"],
  "ingest app delete": ["ingest app delete APP_ID"],
  "ingest key create": [
    "ingest key create --app APP_ID",
    "ingest key create --app APP_ID --scope read --expires 2030-01-01",
    "ingest key create --app APP_ID --name 'Build server' --event-type 'build.*' --cidr 192.0.2.0/24",
  ],
  "ingest key update": [
    "ingest key update KEY_ID --name 'Build server'",
    "ingest key update KEY_ID --clear expires cidr",
  ],
  "ingest key revoke": ["ingest key revoke KEY_ID --wait"],
  "ingest key rotate": ["ingest key rotate KEY_ID --grace 24h"],
  "ingest key list": ["ingest key list --app APP_ID"],
  "ingest key show": ["ingest key show KEY_ID"],
  "ingest key find": ["ingest key find --file leaked.txt", "ingest key find --file leaked.txt --revoke"],
  "ingest apply": ["ingest apply -f ingest.yaml --dry-run", "ingest apply -f ingest.yaml --secrets secrets --prune"],
  "ingest token create": [
    "ingest token create --name 'Alex, laptop' --role operator",
    "ingest token create --name 'Developer tab' --role manager --org ORG_ID --expires 2030-01-01",
  ],
  "ingest token list": ["ingest token list", "ingest token list --role operator --json"],
  "ingest token revoke": ["ingest token revoke TOKEN_ID"],
  "ingest whoami": ["ingest whoami"],
  "ingest audit": [
    "ingest audit --org ORG_ID --from 2026-04-01",
    "ingest audit --follow --json --state audit.ingest-state",
  ],
  "ingest instances": ["ingest instances"],
  "ingest worker list": ["ingest worker list --org ORG_ID", "ingest worker list --org ORG_ID --email alex@example.com"],
  "ingest worker show": ["ingest worker show WORKER_ID"],
  "ingest worker rename": ["ingest worker rename WORKER_ID 'Alex Chen'"],
  "ingest worker drop-card": ["ingest worker drop-card WORKER_ID --app APP_ID --type weekly_metrics"],
  "ingest worker merge": ["ingest worker merge WORKER_ID OTHER_WORKER_ID"],
  "ingest worker erase": [
    "ingest worker erase WORKER_ID",
    "ingest worker erase --email alex@example.com --app APP_ID",
    "ingest worker erase --external-id crm-user-42 --app APP_ID --allow-again",
  ],
  "ingest quota recount": ["ingest quota recount --org ORG_ID", "ingest quota recount --org ORG_ID --month 2026-04"],
  "ingest request show": ["ingest request show REQUEST_ID   # X-Request-Id of the answer"],
  "ingest request list": [
    "ingest request list --org ORG_ID --outcome refused",
    "ingest request list --org ORG_ID --code forbidden_event_type --start 2026-04-19T12:00Z",
  ],
  "ingest tail": ["ingest tail", "ingest tail --app APP_ID --rejected"],
  "ingest export": [
    "export WEPEOPLE_BASE_URL=http://localhost:8080 WEPEOPLE_READ_KEY=wp_live_...",
    "ingest export events.ndjson --start 2026-04-01 --end 2026-05-01",
    "ingest export --snapshots figures.ndjson --worker WORKER_ID",
  ],
  "ingest send": [
    "export WEPEOPLE_BASE_URL=http://localhost:8080 WEPEOPLE_API_KEY=wp_live_...",
    "ingest send events.ndjson",
    "ingest send events.ndjson.rejected.ndjson",
    "ingest send --snapshots figures.csv.gz",
    "zcat events.gz | ingest send - --state events.ingest-state",
  ],
};

/** The examples of a command. A noun has the first example of each of its verbs. */
export function examplesOf(command: Command): readonly string[] {
  return examples[pathOf(command)] ?? command.commands.flatMap((verb) => examplesOf(verb).slice(0, 1));
}

/** The words of a command, such as `ingest org create`. */
export const pathOf = (command: Command): string =>
  command.parent === null ? command.name() : `${pathOf(command.parent)} ${command.name()}`;

export function addExamples(command: Command): void {
  command.addHelpText("after", () => {
    const lines = examplesOf(command);
    return `\n${lines.length === 1 ? "Example" : "Examples"}:\n${lines.map((line) => `  ${line}`).join("\n")}`;
  });
  for (const one of command.commands) addExamples(one);
}
