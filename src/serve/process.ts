import { type App, type AppOptions, startApp } from "../app.ts";
import type { Config } from "../config.ts";
import { createLogger } from "../observe/log.ts";
import { wantsTracing } from "../tracing.ts";

/** Starts the service in this process, with the configured logs and traces. @throws like startApp. */
export async function startInProcess(
  config: Config,
  mongodbUri: string,
  env: Readonly<Record<string, string | undefined>>,
  options: Pick<AppOptions, "shareMetrics"> = {},
): Promise<Pick<App, "url" | "adminUrl" | "close">> {
  const logger = createLogger({ level: config.LOG_LEVEL, pretty: process.stdout.isTTY });
  const tracing = wantsTracing(env)
    ? await (await import("../observe/opentelemetry.ts")).startTracing(logger, config.TRUST_TRACEPARENT)
    : undefined;
  const app = await startApp({ config, mongodbUri, logger, tracing, ...options });
  return {
    url: app.url,
    adminUrl: app.adminUrl,
    async close() {
      await app.close();
      await tracing?.close();
    },
  };
}
