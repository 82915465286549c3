import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { chmod, open, readFile, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { withoutEndSlashes } from "../addresses.ts";
import { makeDirectory, makeScratchFolder } from "../files.ts";
import type { Environment, Report } from "./report.ts";

const run = promisify(execFile);

/** The release that we download: a supported one that fixes CVE-2025-14847. */
export const downloadVersion = "8.0.32";

/** One of MongoDB's archives, pinned by its hash. */
export interface Archive {
  /** Path below the download site or its mirror. */
  readonly path: string;
  readonly sha256: string;
}

const linux = (arch: string, system: string, sha256: string): Archive => ({
  path: `linux/mongodb-linux-${arch}-${system}-${downloadVersion}.tgz`,
  sha256,
});
const macos = (arch: string, sha256: string): Archive => ({
  path: `osx/mongodb-macos-${arch}-${downloadVersion}.tgz`,
  sha256,
});

/** By platform, processor and, on Linux, the family of the distribution. */
const archives: Readonly<Record<string, Archive>> = {
  "linux x64 rhel": linux("x86_64", "rhel93", "91d7f9fd463d3b91359528bcce8d8c2c30ff6aa90f1f58480e225d70a7057566"),
  "linux arm64 rhel": linux("aarch64", "rhel93", "76e77cf57421604d3f302078e73d37523d067716f587c6c634ed94adbc8540d0"),
  "linux x64": linux("x86_64", "ubuntu2204", "41da8d92dde2896ebda278cf296ae86462da6b39eda81ce6ce4fb9ce819adb2e"),
  "linux arm64": linux("aarch64", "ubuntu2204", "7411bc9efef53346a26e67241ca9db9926c30b7a056e2515068223b497682c81"),
  "darwin x64": macos("x86_64", "4073d96f1a83ecae289997cb1f9ace5258a740fdb9b8b06ee00098ec342d1bce"),
  "darwin arm64": macos("arm64", "f81cb258434d548dca7244d599c82eb339043d8dedd0b1b807870c9d263117f2"),
};

/** @throws Error if there is none for this system. */
export async function archiveOfSystem(): Promise<Archive> {
  const system = `${process.platform} ${process.arch}`;
  const release = await readFile("/etc/os-release", "utf8").catch(() => "");
  const isRhel = /^ID(_LIKE)?=.*\b(rhel|centos|fedora)\b/m.test(release);
  const archive = archives[isRhel ? `${system} rhel` : system];
  if (archive === undefined) throw new Error(`there is none for ${system}`);
  return archive;
}

const downloads = "https://fastdl.mongodb.org";
/** A download that sends nothing for this long has failed, in seconds. */
const defaultSilenceSecondsMax = 20;
const reportEveryMs = 2_000;

export const downloadedName = `mongod-${downloadVersion}`;

/**
 * Unpacks only an archive with the pinned hash.
 * @returns the path of mongod in `cache`.
 * @throws Error with the reason, also if nothing arrives for `silenceSecondsMax`.
 */
export async function downloadMongod(
  cache: string,
  env: Environment,
  report: Report,
  archive?: Archive,
  silenceSecondsMax = defaultSilenceSecondsMax,
): Promise<string> {
  const { path, sha256 } = archive ?? (await archiveOfSystem());
  const url = `${withoutEndSlashes(env.MONGOD_MIRROR ?? downloads)}/${path}`;
  await makeDirectory(cache, 0o700);
  report(`Downloading MongoDB ${downloadVersion} into ${cache} (once) …`);
  // In the same directory, so that the rename is atomic: two processes may download at once.
  const directory = await makeScratchFolder(cache, "download-");
  try {
    const file = join(directory, "mongodb.tgz");
    const found = await fetchInto(file, url, report, silenceSecondsMax * 1000);
    if (found !== sha256) throw new Error(`${url} has the SHA-256 ${found}; ${sha256} was expected`);
    await run("tar", ["-xzf", file, "-C", directory, "--strip-components=1"]);
    const binary = join(directory, "bin", "mongod");
    await chmod(binary, 0o755);
    await rename(binary, join(cache, downloadedName));
    return join(cache, downloadedName);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Stores the response body; returns its SHA-256. */
async function fetchInto(file: string, url: string, report: Report, silenceMsMax: number): Promise<string> {
  const silent = new AbortController();
  const timer = setTimeout(
    () => silent.abort(new Error(`nothing arrived for ${silenceMsMax / 1000} seconds`)),
    silenceMsMax,
  );
  const handle = await open(file, "w", 0o600);
  try {
    const response = await fetch(url, { signal: silent.signal });
    if (!response.ok || response.body === null) throw new Error(`${url} answered ${response.status}`);
    const megabytes = (bytes: number) => Math.ceil(bytes / 1_000_000);
    const total = Number(response.headers.get("content-length"));
    const hash = createHash("sha256");
    let bytes = 0;
    let reportedMs = performance.now();
    for await (const chunk of response.body) {
      timer.refresh();
      hash.update(chunk);
      await handle.write(chunk);
      bytes += chunk.length;
      if (performance.now() - reportedMs < reportEveryMs) continue;
      reportedMs = performance.now();
      report(`Downloading MongoDB ${downloadVersion}: ${megabytes(bytes)} of ${megabytes(total)} MB`);
    }
    return hash.digest("hex");
  } catch (error) {
    if (silent.signal.aborted) throw silent.signal.reason;
    // The error of fetch says only that it failed; its cause says why.
    throw error instanceof TypeError && error.cause instanceof Error ? error.cause : error;
  } finally {
    clearTimeout(timer);
    await handle.close();
  }
}
