import type { Command, Help } from "commander";
import { configVariables } from "../config.ts";
import { assertDatabase } from "./context.ts";

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("run the service until SIGTERM, SIGINT or SIGHUP")
    .addHelpText("after", ({ command }) => `\nEnvironment:\n${variableLines(command.createHelp()).join("\n")}`)
    .action(async () => {
      assertDatabase("serve");
      const { serveAndExit } = await import("../serve/serve.ts");
      await serveAndExit(process.env);
    });
}

function variableLines(help: Help): string[] {
  const variables = configVariables();
  const termWidth = Math.max(...variables.map(({ name }) => name.length));
  help.prepareContext({ helpWidth: process.stdout.columns || 80 });
  return variables.map(({ name, default: value, meaning }) => {
    const known = value === undefined ? "" : ` (default: ${String(value)})`;
    return help.formatItem(name, termWidth, meaning.replaceAll("`", "") + known, help);
  });
}
