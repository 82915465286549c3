import { statfsSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

const memory = "/dev/shm";
/** Several databases run at once, each with some hundred megabytes of journal. */
const bytesNeeded = 4 * 2 ** 30;

function hasRoom(path: string): boolean {
  try {
    const { bavail, bsize } = statfsSync(path);
    return bavail * bsize >= bytesNeeded;
  } catch {
    return false;
  }
}

/**
 * A new folder for the data of a mongod: in memory if there is room, else on disk. A killed process loses nothing in
 * either, and in memory no test waits for a busy disk.
 */
export const databaseFolder = (name: string): Promise<string> =>
  mkdtemp(join(hasRoom(memory) ? memory : tmpdir(), `ingest-${name}-`));
