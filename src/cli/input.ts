import { readFile } from "node:fs/promises";
import { text } from "node:stream/consumers";
import { ConfigError } from "../config.ts";

/**
 * The text of the file of `--file`; `-` is standard input, which may come as slowly as it likes.
 * @throws ConfigError
 */
export async function readInput(file: string): Promise<string> {
  try {
    return await (file === "-" ? text(process.stdin) : readFile(file, "utf8"));
  } catch (error) {
    throw new ConfigError(`--file cannot be read: ${(error as Error).message}`);
  }
}
