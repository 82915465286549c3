import { readFileSync } from "node:fs";
import { Command, Help, type Option } from "commander";
import { addApp } from "./app.ts";
import { addApply } from "./apply.ts";
import { addAudit } from "./audit.ts";
import { addCheck } from "./check.ts";
import { addExamples } from "./examples.ts";
import { exitCodes } from "../serve/exit.ts";
import { addExport } from "./export.ts";
import { addInstances } from "./instances.ts";
import { addKey } from "./key.ts";
import { addMigrate } from "./migrate.ts";
import { addOrg } from "./org.ts";
import { addQuota } from "./quota.ts";
import { addRequest } from "./request.ts";
import { addSend } from "./send.ts";
import { addServe } from "./serve.ts";
import { addTail } from "./tail.ts";
import { addToken } from "./token.ts";
import { addWorker } from "./worker.ts";

/** In the order of the help. */
const nouns = [
  addServe,
  addMigrate,
  addCheck,
  addOrg,
  addApp,
  addKey,
  addApply,
  addToken,
  addAudit,
  addInstances,
  addWorker,
  addQuota,
  addRequest,
  addTail,
  addSend,
  addExport,
];

const codes = Object.values(exitCodes).map(({ code, meaning }) => `  ${code}  ${meaning}`);

/** The path is right from src/cli and from dist/cli. */
const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8")) as {
  version: string;
};

/** Commander does not say which options a command needs. */
function optionDescription(this: Help, option: Option): string {
  const description = Help.prototype.optionDescription.call(this, option);
  return option.mandatory ? `${description} (required)` : description;
}

/** Throws a CommanderError for help and wrong command lines, and never ends the process. */
export function createProgram(): Command {
  const program = new Command("ingest")
    .description(
      "Runs and administers Ingest: with the service at INGEST_URL, or on the database of MONGODB_URI or DATA_DIR.",
    )
    .version(version)
    .addHelpText(
      "after",
      `\nExit codes:\n${codes.join("\n")}\n\n\`ingest serve --help\` lists the environment variables.`,
    )
    .showHelpAfterError("(--help shows what is allowed)")
    .configureHelp({ optionDescription })
    .exitOverride();
  for (const add of nouns) add(program);
  addExamples(program);
  return program;
}
