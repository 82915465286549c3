import { availableParallelism } from "node:os";
import { z } from "zod";

const wholeNumber = z.string().regex(/^\d+$/, "must be a whole number").transform(Number);
const port = wholeNumber.pipe(z.number().max(65_535));
/** Not negative, at most `max`; a fraction is fine. */
const seconds = (max: number) =>
  z
    .string()
    .regex(/^\d+(\.\d+)?$/, "must be a number of seconds")
    .transform(Number)
    .pipe(z.number().max(max));
const workers = z
  .string()
  .regex(/^(auto|[1-9]\d?)$/, "must be 1 to 99, or auto")
  .transform((text) => (text === "auto" ? availableParallelism() : Number(text)));
const optionalText = z.string().optional();

/** Origins as browsers send them: anything else would never match, and nobody would see why. */
const origins = z.string().transform((text, context) =>
  text.split(",").map((part, i) => {
    const origin = part.trim();
    const expected = origin === "*" ? origin : originOf(origin);
    if (expected !== origin) {
      const remedy =
        expected === undefined
          ? "an origin is http:// or https://, a host and maybe a port"
          : `browsers send ${expected}`;
      context.addIssue({ code: "custom", message: `its origin ${i + 1} is none that a browser sends: ${remedy}` });
    }
    return origin;
  }),
);

/** The origin of a page at this address; undefined where a page has none. */
function originOf(text: string): string | undefined {
  const url = /^https?:\/\//i.test(text) && URL.canParse(text) ? new URL(text) : undefined;
  return url !== undefined && /^([\w.-]+|\[[\da-f:.]+\])$/.test(url.hostname) ? url.origin : undefined;
}

/** What MongoDB takes as a database's name on every system, less its own three. */
const databaseName = z
  .string()
  .regex(/^[^/\\. "$*<>:|?\0]{1,63}$/, 'must be 1 to 63 characters without / \\ . " $ * < > : | ? and spaces')
  .refine((name) => !["admin", "config", "local"].includes(name), "is one of MongoDB's own databases");

/** The environment, one entry a variable. `secret` values are never printed. */
export const configSchema = z.object({
  PORT: port.prefault("8080").meta({ description: "Port; 0 picks a free one and prints it." }),
  HOST: z.string().default("0.0.0.0").meta({ description: "Address to listen on." }),
  MONGODB_URI: z
    .string()
    // Its text may hold a password: what is wrong with it is not quoted.
    .regex(/^mongodb(\+srv)?:\/\/[^/]/, "must begin with mongodb:// or mongodb+srv:// and name a host")
    .optional()
    .meta({
      description: "MongoDB replica set to use. Without it the service runs its own mongod.",
      secret: true,
    }),
  MONGODB_DB: databaseName.default("ingest").meta({ description: "Name of the database." }),
  DATA_DIR: z.string().default(".data").meta({ description: "Where the embedded database keeps its data." }),
  MONGOD_BINARY: optionalText.meta({ description: "The mongod that the embedded database runs." }),
  PUBLIC_URL: z
    .url({ protocol: /^https?$/ })
    .transform((url) => url.replace(/\/+$/, ""))
    .optional()
    .meta({ description: "Base of docsUrl. Default: http://localhost and the port." }),
  TLS_CERT: optionalText.meta({
    description: "File with the certificate chain in PEM; with TLS_KEY the port speaks TLS.",
  }),
  TLS_KEY: optionalText.meta({ description: "File with the private key in PEM." }),
  CORS_ORIGINS: origins.optional().meta({
    description:
      "Origins whose pages may call the API from a browser, separated by commas, such as `https://app.example.org`; `*` for all. Without it none may.",
  }),
  KEEP_ALIVE_SECONDS: seconds(3600)
    .refine((value) => value >= 5, "must be at least 5")
    .prefault("65")
    .meta({
      description:
        "Seconds for which an idle connection is kept. A balancer in front must let go of idle connections earlier: ALB does after 60 s, Google's after 600 s, so `620` behind that one.",
    }),
  DRAIN_SECONDS: seconds(600)
    .prefault("10")
    .meta({ description: "Seconds that requests in flight may take to finish when the service stops." }),
  REQUEST_RECORD_HOURS: z.coerce
    .number()
    .min(0)
    .max(24 * 365)
    .default(72)
    .meta({ description: "Hours for which `ingest request show` finds a request; 0 keeps no records." }),
  METRICS_TOKEN: optionalText.meta({
    description: "With it, `/metrics` is only for callers that send it as their bearer token.",
    secret: true,
  }),
  STOP_DELAY_SECONDS: seconds(600).prefault("0").meta({
    description:
      "Seconds between readiness going down and the port closing when the service stops: time for a balancer to notice.",
  }),
  WORKERS: workers.prefault("1").meta({
    description: "Processes that serve, together on one port; `auto` for as many as the machine has cores.",
  }),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .meta({ description: "Least level that is logged." }),
});

export type Config = z.infer<typeof configSchema>;

/** The environment does not make a configuration; the message lists every problem. */
export class ConfigError extends Error {}

/**
 * The configuration of an environment. A variable set to nothing counts as not set.
 * @throws ConfigError that lists every problem at once.
 */
export function parseConfig(env: Readonly<Record<string, string | undefined>>): Config {
  const given = Object.fromEntries(Object.entries(env).filter(([, value]) => value !== ""));
  const result = configSchema.safeParse(given);
  const problems = result.success
    ? []
    : // By name, not by value: a password may have got into any of them.
      result.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
  if ((given.TLS_CERT === undefined) !== (given.TLS_KEY === undefined)) {
    problems.push("TLS_CERT, TLS_KEY: set both or neither");
  }
  if (!result.success || problems.length > 0) {
    throw new ConfigError(`The configuration is not usable:\n  ${problems.join("\n  ")}`);
  }
  return result.data;
}
