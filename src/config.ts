import { z } from "zod";

/** The environment, one entry a variable. `secret` values are never printed. */
const port = z.coerce.number().int().min(0).max(65_535);
const optionalText = z.string().min(1).optional();

export const configSchema = z.object({
  PORT: port.default(8080).meta({ description: "Port; 0 picks a free one and prints it." }),
  HOST: z.string().min(1).default("0.0.0.0").meta({ description: "Address to listen on." }),
  MONGODB_URI: optionalText.meta({
    description: "MongoDB replica set to use. Without it the service runs its own mongod.",
    secret: true,
  }),
  MONGODB_DB: z.string().min(1).default("ingest").meta({ description: "Name of the database." }),
  DATA_DIR: z.string().min(1).default(".data").meta({ description: "Where the embedded database keeps its data." }),
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
  DRAIN_SECONDS: z.coerce
    .number()
    .min(0)
    .max(600)
    .default(10)
    .meta({ description: "Seconds that requests in flight may take to finish when the service stops." }),
  METRICS_TOKEN: optionalText.meta({
    description: "With it, `/metrics` is only for callers that send it as their bearer token.",
    secret: true,
  }),
  LOG_LEVEL: z
    .enum(["trace", "debug", "info", "warn", "error", "fatal", "silent"])
    .default("info")
    .meta({ description: "Least level that is logged." }),
});

export type Config = z.infer<typeof configSchema>;

/** The environment does not make a configuration; the message lists every problem. */
export class ConfigError extends Error {}

/** The configuration of an environment. @throws ConfigError that lists every problem at once. */
export function parseConfig(env: Readonly<Record<string, string | undefined>>): Config {
  const result = configSchema.safeParse(env);
  const problems = result.success
    ? []
    : result.error.issues.map(({ path, message }) => `${path.join(".")}: ${message}`);
  if ((env.TLS_CERT === undefined) !== (env.TLS_KEY === undefined))
    problems.push("TLS_CERT, TLS_KEY: set both or neither");
  if (!result.success || problems.length > 0)
    throw new ConfigError(`The configuration is not usable:\n  ${problems.join("\n  ")}`);
  return result.data;
}
