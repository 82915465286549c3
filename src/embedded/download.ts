import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import type { Environment, Report } from "./report.ts";

/** The MongoDB that is downloaded. */
export const downloadVersion = "8.0.12";

/** Silence after which the download counts as failed, in seconds. While data flows it reports every two seconds. */
const defaultSilenceSecondsMax = 20;

/**
 * MongoDB's own download, by mongodb-memory-server's downloader: finds the build for this system, checks its MD5, resumes.
 * It runs in a process of its own, because only that can be ended when the other side falls silent, and because it takes
 * its settings from the environment alone (MONGOMS_DOWNLOAD_MIRROR and the like are honoured).
 * @returns the path of the mongod, in `cache`.
 * @throws Error with the downloader's own reason, or when nothing arrived for `silenceSecondsMax`.
 */
export function downloadMongod(
  cache: string,
  env: Environment,
  report: Report,
  silenceSecondsMax = defaultSilenceSecondsMax,
): Promise<string> {
  report(`Downloading MongoDB ${downloadVersion} into ${cache} (once) …`);
  const child = spawn(process.execPath, [fileURLToPath(import.meta.url), cache], {
    env: {
      ...env,
      // The downloader checks the server's certificate only when told so.
      npm_config_strict_ssl: "true",
      MONGOMS_MAX_RETRIES: env.MONGOMS_MAX_RETRIES ?? "2",
      // Otherwise a project's package.json in the working directory could change what is downloaded.
      MONGOMS_VERSION: downloadVersion,
    },
    stdio: ["ignore", "pipe", "pipe"],
  });
  return new Promise((resolve, reject) => {
    let answer: { path?: string; error?: string } = {};
    let trouble = "";
    const silence = setTimeout(() => {
      answer = { error: `nothing arrived for ${silenceSecondsMax} seconds` };
      child.kill("SIGKILL");
    }, silenceSecondsMax * 1000);
    createInterface(child.stdout).on("line", (line) => {
      silence.refresh();
      if (line.startsWith("{")) answer = JSON.parse(line);
      else if (line.trim() !== "") report(line.trim());
    });
    child.stderr.on("data", (chunk: Buffer) => (trouble = String(chunk).trim().split("\n").at(-1) ?? ""));
    child.once("error", reject);
    child.once("close", (code) => {
      clearTimeout(silence);
      if (answer.path !== undefined) resolve(answer.path);
      else reject(new Error(answer.error ?? `the downloader ended with exit code ${code}: ${trouble}`));
    });
  });
}

/** The child's part: progress lines of the downloader's own on standard output, then the outcome as a line of JSON. */
if (import.meta.main) {
  const [, , cache] = process.argv as [string, string, string];
  const { MongoBinary } = await import("mongodb-memory-server-core");
  const answer = await MongoBinary.getPath({ version: downloadVersion, downloadDir: cache }).then(
    (path) => ({ path }),
    (error: Error) => ({ error: error.message.split("\n")[0] }),
  );
  process.stdout.write(`\n${JSON.stringify(answer)}\n`, () => process.exit());
}
