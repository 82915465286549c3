import type { Command } from "commander";

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("run the service until SIGTERM or SIGINT")
    .action(async () => {
      const { serveAndExit } = await import("../serve/serve.ts");
      await serveAndExit(process.env);
    });
}
