import { readFileSync, renameSync, writeFileSync } from "node:fs";
import { cpus, release, totalmem } from "node:os";

const readme = new URL("README.md", import.meta.url);

const beginOf = (name: string) => `<!-- begin ${name}: written by npm run test:${name} -->`;
const endOf = (name: string) => `<!-- end ${name} -->`;

/** Returns `text` with `content` as the section `name`; a missing section is added at the end. */
export function withSection(text: string, name: string, content: string): string {
  const section = `${beginOf(name)}\n\n${content.trim()}\n\n${endOf(name)}`;
  const from = text.indexOf(beginOf(name));
  const to = text.indexOf(endOf(name), from);
  if (from < 0 || to < 0) return `${text.trimEnd()}\n\n${section}\n`;
  return text.slice(0, from) + section + text.slice(to + endOf(name).length);
}

/**
 * Writes the results of a run into its section of this folder's README.md, between two markers. `name` is that of the
 * npm script after `test:`.
 */
export function report(name: string, content: string): void {
  const partial = new URL(`README.md.${process.pid}`, import.meta.url);
  writeFileSync(partial, withSection(readFileSync(readme, "utf8"), name, content));
  renameSync(partial, readme);
}

/** A Markdown table. It escapes only bars and line breaks in cells. */
export function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const line = (cells: readonly (string | number)[]) =>
    `| ${cells.map((cell) => String(cell).replaceAll("|", "\\|").replaceAll("\n", " ")).join(" | ")} |`;
  return [line(head), line(head.map(() => "---")), ...rows.map(line)].join("\n");
}

/** The time and the machine of a run: the line above its table. */
export function runLine(now = new Date()): string {
  const gigabytes = Math.round(totalmem() / 2 ** 30);
  const date = now.toISOString().slice(0, 10);
  return `${date}; ${cpus().length} cores, ${gigabytes} GB of memory, ${process.platform} ${release()}, Node ${process.version}`;
}
