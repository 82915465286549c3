import type { Command } from "commander";

export function addServe(program: Command): void {
  program
    .command("serve")
    .description("run the service until SIGTERM or SIGINT")
    .action(async () => {
      const { serve } = await import("../main.ts");
      process.exit(await serve(process.env));
    });
}
