import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import { prepareSuite } from "./tools.ts";

/** Less parallel than the default: on a small machine the clients' deadlines would pass. */
const gently = ["--max-servers", "2", "--parallel", "4"];

/**
 * Runs connectconformance against the server under test: every protocol, HTTP/1.1 and HTTP/2, with and without TLS and
 * the message size limit, both codecs, gzip. It skips no case and expects no failure. The suite itself leaves out
 * client certificates and half-duplex streams over HTTP/1.1, which we do not offer.
 */
export async function runSuite(command: string): Promise<{ passed: boolean; output: string }> {
  const server = fileURLToPath(new URL("server.ts", import.meta.url));
  const child = spawn(command, ["--mode", "server", ...gently, "--", process.execPath, server], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  const chunks: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => chunks.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => chunks.push(chunk));
  const code = await new Promise<number | null>((resolve, reject) =>
    child.once("close", resolve).once("error", reject),
  );
  return { passed: code === 0, output: Buffer.concat(chunks).toString() };
}

if (import.meta.main) {
  const suite = prepareSuite();
  if ("missing" in suite) {
    console.log(`connectconformance: not run, ${suite.missing}`);
  } else {
    const runs = Number(process.argv.find((argument) => argument.startsWith("--runs="))?.slice("--runs=".length) ?? 1);
    for (let run = 1; run <= runs; run++) {
      const startedMs = performance.now();
      const { passed, output } = await runSuite(suite.command);
      console.log(passed ? output.trimEnd().split("\n").slice(-1)[0] : output);
      console.log(
        `run ${run} of ${runs}: ${passed ? "passed" : "FAILED"} in ${Math.round((performance.now() - startedMs) / 1000)} s`,
      );
      if (!passed) process.exitCode = 1;
    }
  }
}
