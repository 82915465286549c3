import { mkdir } from "node:fs/promises";
import { dirname } from "node:path";

/**
 * Makes a directory and those above it that are missing; one that exists is left as it is. Unlike Node's own `recursive`
 * it ends with an error where a directory can never be made, as below /proc.
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

const reasons: Readonly<Record<string, string>> = {
  EACCES: "the process may not read or write there; change its owner or choose another folder",
  EPERM: "the process may not read or write there; change its owner or choose another folder",
  EROFS: "it is on a file system that is mounted read-only; choose another folder",
  ENOSPC: "its disk is full; make room or choose another folder",
  EDQUOT: "the quota of its disk is used up; make room or choose another folder",
  ENOTDIR: "it is no directory, or a part of it is none; choose another folder",
  EEXIST: "it is no directory; choose another folder",
  ENOENT: "it does not exist and cannot be made; choose another folder",
  ELOOP: "its links lead in a circle; choose another folder",
  ENAMETOOLONG: "it is too long; choose another folder",
};

/** What is wrong with a directory and what to do, behind its name; undefined when the error is no file system's. */
export const reasonOfDirectory = (error: unknown): string | undefined =>
  reasons[(error as NodeJS.ErrnoException).code ?? ""];
