import { describe, expect, test } from "vitest";
import { ConfigError, configSchema, isAdminPublic, parseConfig, warningsOf } from "../src/config.ts";
import { environmentOfWorkers } from "../src/serve/cluster.ts";

function problemsOf(env: Record<string, string>): string[] {
  return messagesOf(env).map((line) => line.replace(/:.*/, ""));
}

function messagesOf(env: Record<string, string>): string[] {
  try {
    parseConfig(env);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as Error).message
      .split("\n")
      .slice(1)
      .map((line) => line.trim());
  }
  return [];
}

const uri = "mongodb://a:1,b:2/?replicaSet=x";

describe("the configuration", () => {
  test("has a default for every variable", () => {
    expect(parseConfig({})).toMatchObject({ PORT: 8080, MONGODB_DB: "ingest", DATA_DIR: ".data", LOG_LEVEL: "info" });
  });

  test.each(Object.keys(configSchema.shape))("refuses an empty %s, and says so", (name) => {
    const problems = messagesOf({ [name]: "" }).filter((problem) => problem.startsWith(`${name}: `));
    expect(problems).toEqual([`${name}: is empty; give it a value, or remove it`]);
    expect(problemsOf({ [name]: " " })).toContain(name);
  });

  test("listens only on loopback with the embedded database, unless HOST is set", () => {
    expect(parseConfig({}).HOST).toBe("127.0.0.1");
    expect(parseConfig({ MONGODB_URI: uri }).HOST).toBe("0.0.0.0");
    expect(parseConfig({ HOST: "192.0.2.1" }).HOST).toBe("192.0.2.1");
  });

  test("needs MONGODB_URI in production, unless EMBEDDED is set", () => {
    expect(problemsOf({ NODE_ENV: "production" })).toEqual(["MONGODB_URI"]);
    expect(problemsOf({ NODE_ENV: "production", MONGODB_URI: uri })).toEqual([]);
    expect(problemsOf({ NODE_ENV: "production", EMBEDDED: "1" })).toEqual([]);
    expect(problemsOf({ NODE_ENV: "development" })).toEqual([]);
    expect(problemsOf({ EMBEDDED: "1", MONGODB_URI: uri })).toEqual(["EMBEDDED, MONGODB_URI"]);
  });

  test("settings of TLS without a certificate are errors: the port would speak plain text", () => {
    const tls = { TLS_CERT: "cert.pem", TLS_KEY: "key.pem" };
    expect(problemsOf({ ...tls, TLS_MIN_VERSION: "1.3", TLS_CLIENT_CA: "ca.pem" })).toEqual([]);
    expect(problemsOf({ TLS_MIN_VERSION: "1.3" })).toEqual(["TLS_MIN_VERSION"]);
    expect(problemsOf({ TLS_CLIENT_CA: "ca.pem" })).toEqual(["TLS_CLIENT_CA"]);
    expect(problemsOf({ ...tls, TLS_MIN_VERSION: "1.1" })).toEqual(["TLS_MIN_VERSION"]);
  });

  test("takes the settings of OIDC together, and an issuer only over HTTPS or on this machine", () => {
    const oidc = { OIDC_ISSUER: "https://id.example", OIDC_AUDIENCE: "ingest", OIDC_ROLE_CLAIM: "roles" };
    expect(problemsOf(oidc)).toEqual([]);
    for (const name of Object.keys(oidc)) {
      const [problem] = messagesOf({ ...oidc, [name]: undefined as never });
      expect(problem).toBe(`OIDC_ISSUER, OIDC_AUDIENCE, OIDC_ROLE_CLAIM: set all or none; ${name} is missing`);
    }
    const local = ["http://localhost:8090/realms/a", "http://127.0.0.1:1", "http://[::1]:1"];
    for (const OIDC_ISSUER of ["https://id.example/a/", ...local])
      expect(problemsOf({ ...oidc, OIDC_ISSUER })).toEqual([]);
    const open = ["http://id.example", "http://127.0.0.1.evil.example", "http://localhost.example"];
    for (const OIDC_ISSUER of [
      ...open,
      "id.example",
      "https://u:p@id.example",
      "https://id.example?a",
      "https://a#b",
    ]) {
      expect(messagesOf({ ...oidc, OIDC_ISSUER })[0], OIDC_ISSUER).toMatch(/^OIDC_ISSUER: must be an https:/);
    }
  });

  test("gives worker processes what follows from an embedded database", () => {
    for (const HOST of ["127.0.0.1", "0.0.0.0"]) {
      const config = parseConfig({ WORKERS: "2", HOST });
      const ofWorkers = parseConfig(environmentOfWorkers(config, "mongodb://127.0.0.1:1/?replicaSet=x"));
      expect(isAdminPublic(config)).toBe(HOST === "127.0.0.1");
      expect([ofWorkers.HOST, ofWorkers.MONGODB_DB, isAdminPublic(ofWorkers)]).toEqual([
        ...[config.HOST, config.MONGODB_DB, isAdminPublic(config)],
      ]);
    }
  });

  test("reports every problem at once, including a TLS pair and single variables", () => {
    const env = { PORT: "65536", MONGODB_URI: "http://x", MONGODB_DB: "a.b", LOG_LEVEL: "loud", DRAIN_SECONDS: "-1" };
    expect(problemsOf({ ...env, PUBLIC_URL: "ftp://x", TLS_KEY: "key.pem" }).sort()).toEqual([
      "DRAIN_SECONDS",
      "LOG_LEVEL",
      "MONGODB_DB",
      "MONGODB_URI",
      "PORT",
      "PUBLIC_URL",
      "TLS_CERT, TLS_KEY",
    ]);
  });

  test.each([
    ["PORT", ["0", "1", "65535"], ["-1", "65536", "80.5", "0x50", "eighty", " 80", "1e3"]],
    ["MONGODB_URI", [uri, "mongodb+srv://a.example"], ["a:27017", "mongodb://", "x"]],
    ["MONGODB_DB", ["ingest", "Ingest-2_x", "ü".repeat(31)], ["a b", "a.b", "a/b", "a$b", 'a"b', "admin", "local"]],
    ["DRAIN_SECONDS", ["0", "0.5", "600"], ["-1", "601", "1m", "Infinity", "NaN"]],
    ["STOP_DELAY_SECONDS", ["0", "0.5", "600"], ["-1", "601", "1m"]],
    ["RETAIN_DAYS", ["0", "1", "36500"], ["-1", "0.5", "36501", "default"]],
    ["REQUEST_RECORD_HOURS", ["0", "0.5", "8760"], ["-1", "8761", "1e2", "0x10"]],
    ["PUBLIC_URL", ["https://ingest.example", "http://x:1/base/"], ["ingest.example", "ftp://x"]],
    ["LOG_LEVEL", ["trace", "silent"], ["INFO", "verbose", "30"]],
    ["OIDC_AUDIENCE", [], ["x".repeat(256)]],
    ["OIDC_ROLE_CLAIM", [], ["x".repeat(256)]],
    ["EMBEDDED", ["0", "1"], ["yes", "true"]],
    ["TRUST_TRACEPARENT", ["0", "1"], ["yes", "true"]],
    ["WORKERS", ["1", "99", "auto"], ["0", "100", "-1", "1.5"]],
  ])("%s accepts valid values, and says what is allowed", (name, good, bad) => {
    for (const value of good) expect(problemsOf({ [name]: value }), value).toEqual([]);
    for (const value of bad) expect(messagesOf({ [name]: value })[0], value).toMatch(new RegExp(`^${name}: (must|is)`));
  });

  test("has a description of every variable", () => {
    for (const [name, schema] of Object.entries(configSchema.shape)) {
      expect(schema.meta()?.description, name).toMatch(/\.$/);
    }
  });
});

describe("MONGODB_URI", () => {
  test.each([
    "socketTimeoutMS=1",
    "serverSelectionTimeoutMS=60000",
    "connectTimeoutMS=1",
    "heartbeatFrequencyMS=1",
    "timeoutMS=1",
    "w=1",
    "W=0",
    "journal=false",
    "wtimeoutMS=5",
    "readPreference=secondary",
    "readpreference=secondaryPreferred",
    "readPreferenceTags=dc:a",
    "readConcernLevel=linearizable",
    "retryWrites=false",
  ])("refuses %s, which contradicts the service", (option) => {
    const [problem] = messagesOf({ MONGODB_URI: `${uri}&${option}` });
    expect(problem).toMatch(/^MONGODB_URI: has the option /);
    expect(problem).toContain(option.toLowerCase().replace(/=.*/, ""));
    expect(problem).toContain("; remove it");
  });

  test("may repeat what the service does anyway, and may set what it respects", () => {
    const more = "w=majority&journal=true&readPreference=primary&retryWrites=true&maxPoolSize=5&appName=x&tls=true";
    expect(problemsOf({ MONGODB_URI: `mongodb://u:p%40@a/?${more}` })).toEqual([]);
  });

  test("may name the database, and MONGODB_DB must not name another one", () => {
    const databaseOf = (address: string, name?: string) =>
      parseConfig({ MONGODB_URI: address, ...(name === undefined ? {} : { MONGODB_DB: name }) }).MONGODB_DB;
    expect(databaseOf("mongodb://a/prod?replicaSet=x")).toBe("prod");
    expect(databaseOf("mongodb://u:p@a,b/prod")).toBe("prod");
    expect(databaseOf("mongodb://a/prod", "prod")).toBe("prod");
    expect(databaseOf("mongodb://a/", "other")).toBe("other");
    expect(databaseOf("mongodb://a")).toBe("ingest");
    // The authentication database.
    expect(databaseOf("mongodb://u:p@a/admin")).toBe("ingest");
    expect(problemsOf({ MONGODB_URI: "mongodb://a/prod", MONGODB_DB: "ingest" })).toEqual(["MONGODB_DB, MONGODB_URI"]);
    expect(problemsOf({ MONGODB_URI: "mongodb://a/local" })).toEqual(["MONGODB_URI"]);
  });
});

describe("a misspelt variable", () => {
  test.each([
    ["MONGODB_URL", "MONGODB_URI"],
    ["MONGO_URI", "MONGODB_URI"],
    ["MONGO_URL", "MONGODB_URI"],
    ["mongodb_uri", "MONGODB_URI"],
    ["INGEST_MONGODB_URI", "MONGODB_URI"],
    ["MONGDOB_URI", "MONGODB_URI"],
    ["METRIC_TOKEN", "METRICS_TOKEN"],
    ["TLS_CRET", "TLS_CERT"],
    ["TLSKEY", "TLS_KEY"],
  ])("%s is refused, because the service would be open or use another database: %s was meant", (name, meant) => {
    expect(messagesOf({ [name]: "x" })).toEqual([`${name}: is not a variable of Ingest; did you mean ${meant}?`]);
  });

  test.each([
    ["LOGLEVEL", "LOG_LEVEL"],
    ["DATADIR", "DATA_DIR"],
    ["MONGO_DB", "MONGODB_DB"],
    ["WORKER", "WORKERS"],
    ["CORS_ORIGIN", "CORS_ORIGINS"],
    ["DRAIN_SECOND", "DRAIN_SECONDS"],
    ["PUBLIC_URI", "PUBLIC_URL"],
    ["port", "PORT"],
  ])("%s is pointed out: %s was meant", (name, meant) => {
    expect(problemsOf({ [name]: "x" })).toEqual([]);
    expect(warningsOf({ [name]: "x" })).toEqual([
      `${name} is not a variable of Ingest and has no effect; did you mean ${meant}?`,
    ]);
  });

  test("does not matter if the right one is set, too; usual shell variables are fine", () => {
    expect(problemsOf({ MONGODB_URL: "x", MONGODB_URI: uri })).toEqual([]);
    const usual = {
      HOME: "/",
      PATH: "/",
      LANG: "C",
      HOSTNAME: "x",
      USER: "x",
      PWD: "/",
      SHLVL: "1",
      TERM: "x",
      POST: "x",
    };
    expect(
      warningsOf({ ...usual, npm_config_loglevel: "warn", npm_config_cache: "x", LOGNAME: "x", EDITOR: "x" }),
    ).toEqual([]);
    expect(problemsOf(usual)).toEqual([]);
  });
});
