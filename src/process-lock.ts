import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/**
 * Shows other processes that this one uses a directory: each process has an empty file there, named after it. A file
 * counts only while its process lives, so any process may remove the file of a killed one. Processes must see each
 * other's ids: they run on the same machine, in the same container.
 */
export interface Presence {
  /** Removes the file, and the directory after the last file. Further calls do nothing. */
  leave(): void;
}

/** Announces this process in `directory`. Creates the directory (0700) if it is missing. */
export function announce(directory: string): Presence {
  const path = join(directory, `${processIdentity(process.pid)}.${randomBytes(4).toString("hex")}`);
  for (let tries = 1; ; tries++) {
    try {
      makeOne(directory);
      writeFileSync(path, "", { flag: "wx", mode: 0o600 });
      return { leave: () => leave(directory, path) };
    } catch (error) {
      // The last process to leave may have just removed the directory.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT" || tries === 5) throw error;
    }
  }
}

/** Creates one level only: `recursive` never ends where a directory cannot exist. */
function makeOne(directory: string): void {
  try {
    mkdirSync(directory, { mode: 0o700 });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  }
}

function leave(directory: string, path: string): void {
  rmSync(path, { force: true });
  try {
    rmdirSync(directory);
  } catch {
    // Other processes still use the directory, or it is gone.
  }
}

/** The names of the living processes in `directory`. Removes the files of dead ones. */
export function present(directory: string): string[] {
  return namesIn(directory).filter((name) => {
    const living = isAlive(name);
    if (!living) rmSync(join(directory, name), { force: true });
    return living;
  });
}

function namesIn(directory: string): string[] {
  try {
    return readdirSync(directory);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return [];
    throw error;
  }
}

/**
 * Claims `directory` for this process alone. Returns the holder's process id if another one holds it. A process
 * announces itself first and then looks, so the later of two sees the earlier. Both may give up, but both never
 * succeed.
 */
export function claim(directory: string): Presence | number {
  const [holder] = present(directory);
  if (holder !== undefined) return pidOf(holder);
  const own = announce(directory);
  const pids = present(directory).map(pidOf);
  if (pids.length === 1) return own;
  own.leave();
  return pids.find((pid) => pid !== process.pid) ?? process.pid;
}

/**
 * Runs `task` while no other call, in this or another process, runs one for the same `directory`.
 * @param onWait is called once, after a second, with the process id of the holder.
 * @throws Error if another process holds the directory longer than `waitSecondsMax` (default 600).
 */
export async function exclusively<T>(
  directory: string,
  task: () => Promise<T>,
  onWait: (pid: number) => void = () => {},
  waitSecondsMax = 600,
): Promise<T> {
  const since = performance.now();
  let told = false;
  for (;;) {
    const claimed = claim(directory);
    if (typeof claimed === "object") {
      try {
        return await task();
      } finally {
        claimed.leave();
      }
    }
    const waitedSeconds = (performance.now() - since) / 1000;
    if (waitedSeconds > 1 && !told) {
      told = true;
      onWait(claimed);
    }
    if (waitedSeconds > waitSecondsMax) {
      throw new Error(`process ${claimed} has held ${directory} for more than ${waitSecondsMax} seconds`);
    }
    await delay(20 + Math.random() * 60);
  }
}

/**
 * Identifies a process by its pid and, on Linux, its start time: a restarted container reuses pid 1. Undefined if no
 * such process lives; a zombie counts as dead.
 */
export function processIdentity(pid: number): string | undefined {
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: the process lives, but belongs to another user.
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return undefined;
  }
  if (process.platform !== "linux") return `${pid}`;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The command's name in brackets may contain spaces and brackets. State and start time are fields 3 and 22.
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    if (fields[0] === "Z" || fields[0] === "X") return undefined;
    bootId ??= readFileSync("/proc/sys/kernel/random/boot_id", "utf8").slice(0, 8);
    return `${pid}.${fields[19]}.${bootId}`;
  } catch {
    return undefined;
  }
}

let bootId: string | undefined;

function isAlive(name: string): boolean {
  return processIdentity(pidOf(name)) === name.slice(0, name.lastIndexOf("."));
}

function pidOf(name: string): number {
  return Number.parseInt(name, 10);
}
