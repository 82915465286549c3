import { availableParallelism } from "node:os";
import { z } from "zod";
import { parseMongodbUri, problemsOfMongodbUri } from "./mongodb-uri.ts";
import { createAddressFilter, isLoopback, isSecureUrl, withoutEndSlashes } from "./addresses.ts";

const port = z
  .string()
  .refine((text) => /^\d{1,5}$/.test(text) && Number(text) <= 65_535, "must be a whole number from 0 to 65535")
  .transform(Number);
/** A number from `min` to `max`; fractions are allowed. */
const amount = (max: number, unit: string, min = 0) =>
  z
    .string()
    .refine(
      (text) => /^\d+(\.\d+)?$/.test(text) && Number(text) >= min && Number(text) <= max,
      `must be a number of ${unit} from ${min} to ${max}`,
    )
    .transform(Number);
const processCount = z
  .string()
  .regex(/^(auto|[1-9]\d?)$/, "must be 1 to 99, or auto")
  .transform((text) => (text === "auto" ? availableParallelism() : Number(text)));
/** A hundred years. */
export const retainDaysMax = 36_500;
const days = z
  .string()
  .refine(
    (text) => /^\d{1,5}$/.test(text) && Number(text) <= retainDaysMax,
    `must be a whole number of days from 0 to ${retainDaysMax}`,
  )
  .transform(Number);
const optionalText = z.string().optional();
const flag = z
  .enum(["0", "1"], "must be 0 or 1")
  .prefault("0")
  .transform((text) => text === "1");

/** Origins exactly as browsers send them. Any other spelling would never match, and the operator would not see why. */
const origins = z.string().transform((text, context) =>
  text.split(",").map((part, i) => {
    const origin = part.trim();
    const expected = origin === "*" ? origin : originOf(origin);
    if (expected !== origin) {
      const remedy =
        expected === undefined
          ? "an origin is http:// or https://, a host and maybe a port"
          : `browsers send ${expected}`;
      context.addIssue({ code: "custom", message: `no browser sends its origin ${i + 1}: ${remedy}` });
    }
    return origin;
  }),
);

/** The origin that a browser sends for this address; undefined if there is none. */
function originOf(text: string): string | undefined {
  const url = /^https?:\/\//i.test(text) && URL.canParse(text) ? new URL(text) : undefined;
  return url !== undefined && /^([\w.-]+|\[[\da-f:.]+\])$/.test(url.hostname) ? url.origin : undefined;
}

const addressBlocks = z.string().transform((text, context) => {
  const entries = text.split(",").flatMap((entry) => entry.trim() || []);
  try {
    createAddressFilter(entries);
  } catch (error) {
    context.addIssue({ code: "custom", message: `must be IP addresses and CIDR blocks: ${(error as Error).message}` });
  }
  return entries;
});

const issuerUrl = z.string().refine((text) => {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  return url !== undefined && isSecureUrl(url) && !/[?#@\s]/.test(text);
}, "must be an https:// address without query, fragment and user; http:// only on this machine");

const oidcText = z.string().max(255, "must have at most 255 characters");

/** A name that MongoDB accepts on every system, except those of its own databases. */
const databaseName = z
  .string()
  .regex(/^[^/\\. "$*<>:|?\0]{1,63}$/, 'must be 1 to 63 characters without / \\ . " $ * < > : | ? and spaces')
  .refine((name) => !["admin", "config", "local"].includes(name), "is one of MongoDB's own databases");

const mongodbUri = z
  .string()
  // The URI may contain a password, so no message quotes it.
  .regex(/^mongodb(\+srv)?:\/\/[^/]/, "must begin with mongodb:// or mongodb+srv:// and name a host")
  .superRefine((uri, context) => {
    for (const message of problemsOfMongodbUri(uri)) context.addIssue({ code: "custom", message });
  });

const logLevels = ["trace", "debug", "info", "warn", "error", "fatal", "silent"] as const;

/** The environment variables. `secret` values are never printed. */
export const configSchema = z.object({
  PORT: port.prefault("8080").meta({ description: "Port to listen on; 0 picks a free one and prints it." }),
  HOST: optionalText.meta({
    description:
      "Address to listen on; `::` takes IPv6 and IPv4. Default: `0.0.0.0` with MONGODB_URI, `127.0.0.1` with the embedded database.",
  }),
  ADMIN_PORT: port.optional().meta({
    description:
      "Port for operators: the administration API, `/metrics`, `/healthz` and `/readyz`. 0 picks a free one and prints it. Default: 8081, or a free one if 8081 is taken or PORT is 0.",
  }),
  ADMIN_HOST: z
    .string()
    .default("127.0.0.1")
    .meta({ description: "Address to listen on for operators. In a container: `0.0.0.0`, on a separate network." }),
  MONGODB_URI: mongodbUri.optional().meta({
    description: "MongoDB replica set. Without it the service runs its own mongod.",
    secret: true,
  }),
  MONGODB_DB: databaseName.optional().meta({
    description: "Name of the database. Default: the one in MONGODB_URI, else `ingest`.",
  }),
  EMBEDDED: flag.meta({ description: "`1` lets the service run its own mongod even if NODE_ENV is `production`." }),
  DATA_DIR: z.string().default(".data").meta({ description: "Folder of the embedded database." }),
  MONGOD_BINARY: optionalText.meta({ description: "The mongod that the embedded database runs." }),
  MONGOD_MIRROR: z
    .url({ protocol: /^https?$/, error: "must be an address that begins with http:// or https://" })
    .optional()
    .meta({
      description:
        "Mirror of MongoDB's downloads, for the embedded database. The service checks the hash of each download.",
    }),
  PUBLIC_URL: z
    .url({ protocol: /^https?$/, error: "must be an address that begins with http:// or https://" })
    .transform((url) => withoutEndSlashes(url))
    .optional()
    .meta({
      description:
        "Address that callers use; may have a path. The service shows it in docsUrl, the pages and OpenAPI. Default: the address of HOST, or http://localhost if HOST means all addresses.",
    }),
  TLS_CERT: optionalText.meta({
    description: "File with the certificate chain in PEM. With TLS_KEY, it turns on TLS.",
  }),
  TLS_KEY: optionalText.meta({ description: "File with the private key in PEM." }),
  TLS_MIN_VERSION: z.enum(["1.2", "1.3"], "must be 1.2 or 1.3").default("1.2").meta({
    description: "Oldest version of TLS that a connection may use.",
  }),
  TLS_CLIENT_CA: optionalText.meta({
    description:
      "File with authorities in PEM. Every connection to PORT then needs a certificate from one of them. Default: none.",
  }),
  CORS_ORIGINS: origins.optional().meta({
    description:
      "Origins whose pages may call the API and that of administration from a browser, separated by commas, such as `https://app.example.org`; `*` for all. Default: none.",
  }),
  TRUSTED_PROXIES: addressBlocks.optional().meta({
    description:
      "Addresses and CIDR blocks of your proxies, separated by commas. Their X-Forwarded-For names the caller in logs and for limits by address.",
  }),
  TRUST_TRACEPARENT: flag.meta({
    description:
      "`1` lets a caller's `traceparent` decide whether its request is sampled, as OTEL_TRACES_SAMPLER says. Only safe if all callers are yours.",
  }),
  KEEP_ALIVE_SECONDS: amount(3600, "seconds", 5).prefault("65").meta({
    description:
      "Seconds for which the service keeps an idle connection. The load balancer must close it earlier: ALB does so after 60 s, Google's after 600 s (set `620` there).",
  }),
  DRAIN_SECONDS: amount(600, "seconds")
    .prefault("10")
    .meta({ description: "Seconds that running requests have to finish when the service stops." }),
  REQUEST_RECORD_HOURS: amount(24 * 365, "hours")
    .prefault("72")
    .meta({ description: "Hours for which `ingest request show` finds the record of a request; 0 keeps no records." }),
  RETAIN_DAYS: days.prefault("0").meta({
    description:
      "Days for which the service keeps events and snapshot history; 0 keeps them for ever. `ingest org update --retain-days` sets it for one organisation.",
  }),
  ADMIN_ON_PUBLIC_PORT: flag.meta({
    description:
      "`1` serves the administration API on PORT too. The embedded database does so without it, if HOST is a loopback address.",
  }),
  AUDIT_DAYS: days
    .prefault("400")
    .meta({ description: "Days for which the audit keeps each change; 0 keeps them for ever." }),
  METRICS_TOKEN: optionalText.meta({
    description: "Bearer token that `/metrics` requires. Default: none.",
    secret: true,
  }),
  OIDC_ISSUER: issuerUrl.optional().meta({
    description:
      "OIDC issuer whose tokens the administration API takes, spelt exactly as their claim `iss`. Needs OIDC_AUDIENCE and OIDC_ROLE_CLAIM. Default: none.",
  }),
  OIDC_AUDIENCE: oidcText.optional().meta({
    description: "Value that the claim `aud` of an OIDC token must have: the id of Ingest at the issuer.",
  }),
  OIDC_CLIENT_ID: oidcText.optional().meta({
    description:
      "Client id of the console at the issuer, a public client with PKCE. Equal to OIDC_AUDIENCE: the console sends ID tokens; else access tokens. Default: people sign in with access tokens of Ingest only.",
  }),
  OIDC_SCOPE: oidcText.default("openid profile").meta({ description: "Scope that the console asks the issuer for." }),
  OIDC_ROLE_CLAIM: oidcText.optional().meta({
    description:
      "Claim of an OIDC token with the role. May be a path, such as `realm_access.roles`, or a name with dots, such as `https://example.org/roles`.",
  }),
  STOP_DELAY_SECONDS: amount(600, "seconds").prefault("0").meta({
    description:
      "Seconds for which the service still serves after `/readyz` reports that it stops. It gives the load balancer time to notice.",
  }),
  WORKERS: processCount.prefault("1").meta({
    description: "Number of processes that serve the port; `auto` starts one for each core.",
  }),
  LOG_LEVEL: z
    .enum(logLevels, `must be ${logLevels.join(", ")}`)
    .default("info")
    .meta({ description: "Lowest level to log." }),
});

/** The variables for the help and the documentation. `default` is undefined without a fixed default. */
export const configVariables = (): { readonly name: string; readonly default: unknown; readonly meaning: string }[] =>
  Object.entries(configSchema.shape).map(([name, schema]) => {
    const value = schema.parse(undefined);
    const { description, secret } = schema.meta() ?? {};
    return {
      name,
      // The environment writes a boolean as 0 or 1.
      default: typeof value === "boolean" ? Number(value) : value,
      meaning: `${description}${secret === true ? " Never printed." : ""}`,
    };
  });

/** Default of ADMIN_PORT, unless PORT is 0. */
export const adminPortDefault = 8081;

/** A valid environment, with the defaults that depend on other variables filled in. */
export type Config = z.infer<typeof configSchema> & { readonly HOST: string; readonly MONGODB_DB: string };

/** Whether the public port serves administration: a local trial needs no second address. */
export const isAdminPublic = ({ ADMIN_ON_PUBLIC_PORT, MONGODB_URI, HOST }: Config): boolean =>
  ADMIN_ON_PUBLIC_PORT || (MONGODB_URI === undefined && isLoopback(HOST));

type Environment = Readonly<Record<string, string | undefined>>;

/** The message lists every problem. */
export class ConfigError extends Error {}

/**
 * Reads the configuration from an environment. It refuses an empty variable, because a missing secret often causes it.
 * @throws ConfigError that lists every problem by name. It never shows a value, which could contain a password.
 */
export function parseConfig(env: Environment): Config {
  const names = Object.keys(configSchema.shape);
  const empty = names.filter((name) => env[name]?.trim() === "");
  const given = Object.fromEntries(names.filter((name) => !empty.includes(name)).map((name) => [name, env[name]]));
  const result = configSchema.safeParse(given);
  const issues = result.success ? [] : result.error.issues;
  const problems = [
    ...empty.map((name) => `${name}: is empty; give it a value, or remove it`),
    ...issues.map(({ path, message }) => `${path.join(".")}: ${message}`),
    ...misspelt(env)
      .filter(({ meant }) => isGuard(meant))
      .map(({ name, meant }) => `${name}: is not a variable of Ingest; did you mean ${meant}?`),
    ...contradictions(env, given),
  ];
  if (!result.success || problems.length > 0) {
    throw new ConfigError(`The configuration is not valid:\n  ${problems.join("\n  ")}`);
  }
  const { data } = result;
  const { MONGODB_URI: uri } = data;
  return {
    ...data,
    HOST: data.HOST ?? (uri === undefined ? "127.0.0.1" : "0.0.0.0"),
    MONGODB_DB: data.MONGODB_DB ?? (uri === undefined ? undefined : parseMongodbUri(uri).database) ?? "ingest",
  };
}

function contradictions(env: Environment, given: Environment): string[] {
  const { TLS_CERT, TLS_KEY, MONGODB_URI, MONGODB_DB, EMBEDDED } = given;
  const needTls = ["TLS_MIN_VERSION", "TLS_CLIENT_CA"].filter((name) => given[name] !== undefined);
  const problems: string[] = [];
  if ((TLS_CERT === undefined) !== (TLS_KEY === undefined)) problems.push("TLS_CERT, TLS_KEY: set both or neither");
  const oidc = ["OIDC_ISSUER", "OIDC_AUDIENCE", "OIDC_ROLE_CLAIM"];
  const missing = oidc.filter((name) => given[name] === undefined);
  if (missing.length > 0 && missing.length < oidc.length) {
    problems.push(`${oidc.join(", ")}: set all or none; ${missing.join(" and ")} is missing`);
  }
  if (TLS_CERT === undefined) problems.push(...needTls.map((name) => `${name}: has no effect without TLS_CERT`));
  if (MONGODB_URI === undefined) {
    if (env.NODE_ENV === "production" && EMBEDDED !== "1") {
      problems.push(
        "MONGODB_URI: is required because NODE_ENV is production; or set EMBEDDED=1 for a database in DATA_DIR",
      );
    }
    return problems;
  }
  if (EMBEDDED === "1") problems.push("EMBEDDED, MONGODB_URI: set only one of them");
  const { database } = parseMongodbUri(MONGODB_URI);
  if (database === undefined) return problems;
  const name = databaseName.safeParse(database);
  if (!name.success) problems.push(`MONGODB_URI: its database's name ${name.error.issues[0]?.message}`);
  else if (MONGODB_DB !== undefined && MONGODB_DB !== database) {
    problems.push("MONGODB_DB, MONGODB_URI: they name different databases; remove one of them");
  }
  return problems;
}

/** One sentence for each variable whose name looks like a misspelt one of Ingest. */
export const warningsOf = (env: Environment): string[] =>
  misspelt(env)
    .filter(({ meant }) => !isGuard(meant))
    .map(({ name, meant }) => `${name} is not a variable of Ingest and has no effect; did you mean ${meant}?`);

/** Variables whose misspelling is dangerous: without them, the service uses another database, or is unprotected. */
const isGuard = (name: string) =>
  name.startsWith("TLS_") || configSchema.shape[name as keyof typeof configSchema.shape].meta()?.secret === true;

/** Usual names for MONGODB_URI elsewhere that are not near it. */
const namesForUri = /^(MONGO(DB)?_?(URI|URL|CONNECTION(_?(STRING|URI|URL))?)|MONGO_?HOST|DB_?URI)$/i;

function misspelt(env: Environment): { readonly name: string; readonly meant: string }[] {
  const ours = Object.keys(configSchema.shape);
  return Object.keys(env).flatMap((name) => {
    if (ours.includes(name) || env[name] === undefined) return [];
    const bare = comparable(name.replace(/^INGEST_/i, ""));
    const meant = namesForUri.test(name) ? "MONGODB_URI" : ours.find((one) => isNear(bare, comparable(one)));
    return meant === undefined || env[meant] !== undefined ? [] : [{ name, meant }];
  });
}

const comparable = (name: string) => name.toUpperCase().replaceAll(/[^A-Z0-9]/g, "");

/** Whether the names differ by at most one slip, or two in a long name. Short names must be equal. */
function isNear(a: string, b: string): boolean {
  if (a === b) return true;
  const slipsMax = b.length < 6 ? 0 : b.length < 9 ? 1 : 2;
  return Math.abs(a.length - b.length) <= slipsMax && slips(a, b) <= slipsMax;
}

/** The Damerau-Levenshtein distance. */
function slips(a: string, b: string): number {
  const rows = [Array.from({ length: b.length + 1 }, (_, j) => j)];
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    const at = (back: number, j: number) => rows[i - back]?.[j] ?? 0;
    for (let j = 1; j <= b.length; j++) {
      const changed = at(1, j - 1) + (a[i - 1] === b[j - 1] ? 0 : 1);
      row.push(Math.min(changed, at(1, j) + 1, (row[j - 1] ?? 0) + 1));
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        row[j] = Math.min(row[j] ?? 0, at(2, j - 2) + 1);
      }
    }
    rows.push(row);
  }
  return rows[a.length]?.[b.length] ?? 0;
}
