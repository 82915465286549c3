import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { replaceFile } from "../../../files.ts";
import { CommandError } from "../../../serve/exit.ts";

/** Marks a file whose key is being created. If it stays, the run was interrupted, and nobody has the key's secret. */
const pending = "pending: ingest apply was interrupted here; run it again\n";

/** Files for the secrets of new keys, each readable only by its owner. */
export class SecretFiles {
  readonly #folder: string;

  constructor(folder: string) {
    this.#folder = folder;
  }

  /** @param names of the organisation, the app and the key. */
  pathOf(...names: readonly string[]): string {
    return join(this.#folder, names.map(fileNameOf).join("-"));
  }

  /** Whether an interrupted run left the key without its secret. */
  async isPending(path: string): Promise<boolean> {
    return (await readText(path)) === pending;
  }

  /** Whether the file has something that must not be lost. */
  async isTaken(path: string): Promise<boolean> {
    const text = await readText(path);
    return text !== undefined && text !== pending;
  }

  /** Takes the file's name. @throws CommandError if it exists. */
  async reserve(path: string): Promise<void> {
    await mkdir(this.#folder, { recursive: true, mode: 0o700 });
    if (await this.isPending(path)) return;
    try {
      await writeFile(path, pending, { mode: 0o600, flag: "wx", flush: true });
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "EEXIST") throw takenError(path);
      throw error;
    }
  }

  /** Writes the secret in place of the mark, at once or not at all. */
  write(path: string, secret: string): Promise<void> {
    return replaceFile(path, `${secret}\n`);
  }
}

export const takenError = (path: string): CommandError =>
  new CommandError(`${path} exists, and a new key would overwrite it. Move it away, then run the command again.`);

const fileNameOf = (name: string) => name.replaceAll(/[^\w.]+/g, "_").replace(/^\./, "_");

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw error;
  }
}
