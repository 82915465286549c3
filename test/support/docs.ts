import { globSync, readFileSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";
import { Code } from "@connectrpc/connect";
import type { Command } from "commander";
import { exitCodes } from "../../src/serve/exit.ts";
import { pathOf } from "../../src/cli/examples.ts";
import { createProgram } from "../../src/cli/program.ts";
import { configVariables } from "../../src/config.ts";
import { connectCodesOf, type ErrorCode, errorTable } from "../../src/errors.ts";
import { answerHeaderTable } from "../../src/headers.ts";
import { type Limit, limitTable, timelineLimitTable } from "../../src/limits.ts";

export const project = resolve(import.meta.dirname, "../..");

/** Every page for readers: the README, then docs/ in the order of the README's links, then the others. */
export const pages: readonly string[] = orderedPages();

function orderedPages(): string[] {
  const linked = readFileSync(resolve(project, "README.md"), "utf8").matchAll(/\]\((docs\/[\w/-]+\.md)/g);
  const found = globSync(["*.md", "docs/**/*.md"], { cwd: project }).sort();
  return [...new Set(["README.md", ...[...linked].map(([, path]) => path as string), ...found])];
}

const cell = (value: unknown) => String(value ?? "").replaceAll("|", "\\|");
const table = (head: readonly string[], rows: readonly (readonly unknown[])[]) =>
  [head, head.map(() => "---"), ...rows].map((row) => `| ${row.map(cell).join(" | ")} |`).join("\n");
const code = (value: unknown) => (value === undefined ? "" : `\`${value}\``);

const configTable = () =>
  table(
    ["variable", "default", "meaning"],
    configVariables().map(({ name, default: value, meaning }) => [code(name), code(value), meaning]),
  );

const errorsTable = () =>
  table(
    ["code", "HTTP", "Connect and gRPC", "when", "retry"],
    Object.entries(errorTable).map(([name, { http, when, retryable }]) => [
      code(name),
      http,
      connectCodesOf(name as ErrorCode)
        .map((connect) => Code[connect].replace(/(?<=.)[A-Z]/g, (letter) => `_${letter}`).toLowerCase())
        .join(", "),
      when,
      retryable ? "yes" : "no",
    ]),
  );

const number = (value: number) => value.toLocaleString("en").replaceAll(",", " ");
const limitRows = (limits: Readonly<Record<string, Limit>>) =>
  Object.values(limits).map(({ value, unit, of, beyond }) => [of, `${number(value)} ${unit}`, beyond]);
const limitsTable = () =>
  table(
    ["field", "limit", "beyond it"],
    [...limitRows(limitTable), ["**Reading the timeline**", "", ""], ...limitRows(timelineLimitTable)],
  );

const headersTable = () =>
  table(
    ["header", "when", "meaning"],
    Object.values(answerHeaderTable).map(({ name, when, meaning }) => [code(name), when, meaning]),
  );

/** The page explains them once: those of every command, and those of every command that calls the administration API. */
const commonFlags = ["--json", "--url", "--token-file"];
const flagsOf = (command: Command) =>
  optionsOf(command)
    .map(({ flags, mandatory }) => (mandatory ? flags : `[${flags}]`))
    .join(" ");
function optionsOf({ options }: Command) {
  const isClient = options.some(({ long }) => long === "--token-file");
  return options.filter(({ long }) => !commonFlags.includes(long ?? "") || (long === "--url" && !isClient));
}
const commandsOf = (command: Command): Command[] =>
  command.commands.length === 0 ? [command] : command.commands.flatMap(commandsOf);
const argumentsOf = ({ registeredArguments }: Command) =>
  registeredArguments
    .map((argument) => {
      const name = `${argument.name()}${argument.variadic ? "…" : ""}`;
      return argument.required ? ` <${name}>` : ` [${name}]`;
    })
    .join("");

const commandsTable = () =>
  table(
    ["command", "what it does", "flags"],
    commandsOf(createProgram()).map((command) => [
      code(pathOf(command) + argumentsOf(command)),
      command.description(),
      optionsOf(command).length === 0 ? "" : code(flagsOf(command)),
    ]),
  );

const exitsTable = () =>
  table(
    ["exit code", "meaning"],
    Object.values(exitCodes).map(({ code, meaning }) => [code, meaning]),
  );

/** The generated tables, by the name in their markers. */
const tables: Readonly<Record<string, () => string>> = {
  commands: commandsTable,
  config: configTable,
  errors: errorsTable,
  exits: exitsTable,
  headers: headersTable,
  limits: limitsTable,
};

/** Returns a page with its tables generated anew. */
export function withTables(page: string): string {
  return page.replace(/(<!-- table (\w+) -->\n)[^]*?(<!-- \/table -->)/g, (whole, begin, name, end) => {
    const make = tables[name];
    return make === undefined ? whole : `${begin}\n${make()}\n\n${end}`;
  });
}

/** `npm run generate` writes them; a test compares. */
if (import.meta.main)
  for (const page of pages) {
    const path = resolve(project, page);
    const text = readFileSync(path, "utf8");
    if (text !== withTables(text)) writeFileSync(path, withTables(text));
  }
