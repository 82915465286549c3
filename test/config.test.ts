import { describe, expect, test } from "vitest";
import { ConfigError, configSchema, parseConfig } from "../src/config.ts";

function problemsOf(env: Record<string, string>): string[] {
  try {
    parseConfig(env);
  } catch (error) {
    expect(error).toBeInstanceOf(ConfigError);
    return (error as Error).message
      .split("\n")
      .slice(1)
      .map((line) => line.trim().replace(/:.*/, ""));
  }
  return [];
}

describe("the configuration", () => {
  test("needs nothing", () => {
    expect(parseConfig({})).toMatchObject({ PORT: 8080, MONGODB_DB: "ingest", DATA_DIR: ".data", LOG_LEVEL: "info" });
  });

  test("counts a variable that is set to nothing as not set", () => {
    const nothing = Object.fromEntries(Object.keys(configSchema.shape).map((name) => [name, ""]));
    expect(parseConfig(nothing)).toEqual(parseConfig({}));
  });

  test("tells every problem at once, that of the TLS pair beside those of single variables", () => {
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
    ["MONGODB_URI", ["mongodb://a:1,b:2/?replicaSet=x", "mongodb+srv://a.example"], ["a:27017", "mongodb://", "x"]],
    ["MONGODB_DB", ["ingest", "Ingest-2_x", "ü".repeat(31)], ["a b", "a.b", "a/b", "a$b", 'a"b', "admin", "local"]],
    ["DRAIN_SECONDS", ["0", "0.5", "600"], ["-1", "601", "1m", "Infinity", "NaN"]],
    ["STOP_DELAY_SECONDS", ["0", "0.5", "600"], ["-1", "601", "1m"]],
    ["PUBLIC_URL", ["https://ingest.example", "http://x:1/base/"], ["ingest.example", "ftp://x"]],
    ["LOG_LEVEL", ["trace", "silent"], ["INFO", "verbose", "30"]],
  ])("%s takes what it is meant for and nothing else", (name, good, bad) => {
    for (const value of good) expect(problemsOf({ [name]: value }), value).toEqual([]);
    for (const value of bad) expect(problemsOf({ [name]: value }), value).toEqual([name]);
  });

  test("has a description of every variable", () => {
    for (const [name, schema] of Object.entries(configSchema.shape)) {
      expect(schema.meta()?.description, name).toMatch(/\.$/);
    }
  });
});
