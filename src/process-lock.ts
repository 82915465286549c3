import { randomBytes } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";

/**
 * Which processes are here: one empty file a process in a directory, named after the process. A file counts only while
 * its process lives, so a killed process needs no tidying up, and its file may be removed by anyone at any time.
 * Processes must see each other's process ids: the same machine, the same container.
 */
export interface Presence {
  /** Removes the file, and the directory behind the last one; more often than once does nothing. */
  leave(): void;
}

/** Makes this process present in `directory`, which is created (0700) when missing. */
export function announce(directory: string): Presence {
  const path = join(directory, `${processIdentity(process.pid)}.${randomBytes(4).toString("hex")}`);
  for (let tries = 1; ; tries++) {
    try {
      makeOne(directory);
      writeFileSync(path, "", { flag: "wx", mode: 0o600 });
      return { leave: () => leave(directory, path) };
    } catch (error) {
      // Who leaves last may have removed the directory in between.
      if ((error as NodeJS.ErrnoException).code !== "ENOENT" || tries === 5) throw error;
    }
  }
}

/** Its parent exists: `recursive` would never end where a directory cannot be made. */
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
    // Others are here, or it is gone.
  }
}

/** The names of the living in `directory`; the files of the dead are removed. */
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
 * Claims `directory` for its one holder; answers with the process id of the holder when there is one.
 * Who wants in announces itself and then looks: of two, the later one sees the earlier. Both may step back, never both go on.
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
 * @param onWait is told once, after a second of waiting, whom it waits for.
 * @throws when another living process has not finished within `waitSecondsMax` (default 600).
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
 * Tells a process from a later one with the same pid (a restarted container reuses pid 1), where the system says when it
 * started; elsewhere the pid alone. `undefined` when no such process lives; one that ended and was not yet reaped is dead.
 */
export function processIdentity(pid: number): string | undefined {
  try {
    process.kill(pid, 0);
  } catch (error) {
    // EPERM: it lives and is not ours.
    if ((error as NodeJS.ErrnoException).code !== "EPERM") return undefined;
  }
  if (process.platform !== "linux") return `${pid}`;
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    // The command's name, in brackets, may hold spaces and brackets itself; state and start time are fields 3 and 22.
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
