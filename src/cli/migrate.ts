import type { Command } from "commander";
import { note } from "../terminal.ts";
import { assertDatabase, withDatabase } from "./context.ts";
import { output, type OutputFlags, withJson } from "./output.ts";
import { printMigration } from "./database-views.ts";

const help = `
Run it before the first instance of a new version starts. Instances of the
previous version may keep running. You can run it again at any time.`;

export function addMigrate(program: Command): void {
  withJson(
    program
      .command("migrate")
      .description("bring collections and indexes up to date, or set up an empty database")
      .addHelpText("after", help),
  ).action((flags: OutputFlags) => {
    assertDatabase("migrate");
    return withDatabase(
      async ({ db, config }) => {
        const [{ collections }, { migrate }, { schemaVersion }] = await Promise.all([
          import("../store/collections.ts"),
          import("../store/migrations.ts"),
          import("../store/schema-version.ts"),
        ]);
        const changes = await migrate(db, collections, note);
        output({ database: config.MONGODB_DB, schemaVersion, changes }, flags, printMigration);
      },
      { migrating: true },
    );
  });
}
