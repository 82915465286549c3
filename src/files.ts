import { mkdir, mkdtemp, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";

/**
 * Creates a directory and its missing parents. Node's own `recursive` option never ends where a directory cannot exist,
 * such as below /proc; this function throws the error.
 */
export async function makeDirectory(path: string, mode?: number): Promise<void> {
  try {
    await mkdir(path, { mode });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST") return;
    const parent = dirname(path);
    if (code !== "ENOENT" || parent === path) throw error;
    await makeDirectory(parent, mode);
    await mkdir(path, { mode }).catch((again: NodeJS.ErrnoException) => {
      if (again.code !== "EEXIST") throw again;
    });
  }
}

/** Writes a file that only its owner may read. After a crash it is there whole, or as it was before. */
export async function replaceFile(path: string, text: string): Promise<void> {
  const draft = `${path}.${process.pid}`;
  await rm(draft, { force: true });
  // "wx": nobody else may have made the draft, and read it.
  await writeFile(draft, text, { mode: 0o600, flag: "wx", flush: true });
  await rename(draft, path);
}

const leftAfterMs = 86_400_000;

/**
 * Makes a folder for temporary files, whose name begins with the prefix. Removes those that killed processes have left
 * more than a day ago.
 */
export async function makeScratchFolder(parent: string, prefix: string): Promise<string> {
  for (const name of await readdir(parent)) {
    const path = join(parent, name);
    if (!name.startsWith(prefix)) continue;
    // Another process may remove it at the same moment.
    const found = await stat(path).catch(() => undefined);
    const isLeft = found !== undefined && found.mtimeMs < Date.now() - leftAfterMs;
    if (isLeft) await rm(path, { recursive: true, force: true }).catch(() => {});
  }
  return mkdtemp(join(parent, prefix));
}

const reasons: Readonly<Record<string, string>> = {
  EACCES: "the process may not read or write there; change its owner or choose another folder",
  EPERM: "the process may not read or write there; change its owner or choose another folder",
  EROFS: "its file system is mounted read-only; choose another folder",
  ENOSPC: "its disk is full; free some space or choose another folder",
  EDQUOT: "its disk quota is used up; free some space or choose another folder",
  ENOTDIR: "it or a part of its path is not a directory; choose another folder",
  EEXIST: "it is not a directory; choose another folder",
  ENOENT: "it does not exist and cannot be created; choose another folder",
  ELOOP: "its symbolic links form a loop; choose another folder",
  ENAMETOOLONG: "its path is too long; choose another folder",
};

/** Says what is wrong with a directory and what to do; goes after its name. Undefined for other errors. */
export const reasonOfDirectory = (error: unknown): string | undefined =>
  reasons[(error as NodeJS.ErrnoException).code ?? ""];
