import { Command } from "commander";
import { addApp } from "./app.ts";
import { exitCodes } from "../serve/exit.ts";
import { addKey } from "./key.ts";
import { addMigrate } from "./migrate.ts";
import { addOrg } from "./org.ts";
import { addQuota } from "./quota.ts";
import { addRequest } from "./request.ts";
import { addSend } from "./send.ts";
import { addServe } from "./serve.ts";
import { addTail } from "./tail.ts";
import { addWorker } from "./worker.ts";

/** The nouns of the command, in the order of the help; each file adds one. */
const nouns = [addServe, addMigrate, addOrg, addApp, addKey, addWorker, addQuota, addRequest, addTail, addSend];

const codes = Object.values(exitCodes).map(({ code, meaning }) => `  ${code}  ${meaning}`);

/** The whole `ingest` command. Help and wrong command lines are thrown as CommanderError, never an exit of the process. */
export function createProgram(): Command {
  const program = new Command("ingest")
    .description("Runs and administers Ingest, on MONGODB_URI or on the embedded database of DATA_DIR.")
    .addHelpText("after", `\nExit codes:\n${codes.join("\n")}`)
    .showHelpAfterError("(--help shows what is allowed)")
    .exitOverride();
  for (const add of nouns) add(program);
  return program;
}
