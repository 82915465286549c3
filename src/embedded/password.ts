import { randomBytes } from "node:crypto";
import { link, open, rm, stat, writeFile } from "node:fs/promises";

/**
 * The password of an embedded database, created if the file is missing. The file is also mongod's key file: it gives
 * full access, and mongod proves its identity with it.
 * @throws Error if another user could know or choose the password.
 */
export async function openPassword(path: string): Promise<string> {
  const existing = await readPassword(path);
  if (existing !== undefined) return existing;
  const draft = `${path}.${process.pid}`;
  await writeFile(draft, `${randomBytes(32).toString("hex")}\n`, { mode: 0o600, flush: true });
  try {
    // Unlike a rename, a link never replaces a file: if several processes race, the first one wins.
    await link(draft, path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EEXIST") throw error;
  } finally {
    await rm(draft, { force: true });
  }
  return (await readPassword(path)) as string;
}

async function readPassword(path: string): Promise<string | undefined> {
  let handle;
  try {
    handle = await open(path, "r");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
  try {
    // Check the open file, because its path could be swapped before the read.
    const { uid, mode } = await handle.stat();
    const password = (await handle.readFile("utf8")).trim();
    if (uid === process.geteuid?.() && (mode & 0o077) === 0 && /^[0-9a-f]{64}$/.test(password)) return password;
  } finally {
    await handle.close();
  }
  throw new Error(`${path} must hold 64 hex digits and belong to this user alone (mode 0600): remove it.`);
}

/** @throws Error if users outside the directory's group could replace its files. */
export async function refuseOpenDirectory(path: string): Promise<void> {
  if (((await stat(path)).mode & 0o002) === 0) return;
  throw new Error(`Every user may write in DATA_DIR '${path}': run chmod o-w on it, or choose another folder.`);
}
