import type { Command } from "commander";
import { collections } from "../store/collections.ts";
import { migrate, schemaVersion } from "../store/migrations.ts";
import { note } from "../terminal.ts";
import { withDatabase } from "./database.ts";
import { type OutputFlags, print, withJson } from "./output.ts";

const help = `
Run it before the first instance of a new version starts. The instances of the version before go on meanwhile. It may be
run again at any time; what is up to date stays as it is.

Example:
  MONGODB_URI=mongodb://a,b,c/?replicaSet=rs0 ingest migrate`;

export function addMigrate(program: Command): void {
  withJson(
    program
      .command("migrate")
      .description("bring the collections and indexes of the database up to date, or set up an empty one")
      .addHelpText("after", help),
  ).action((flags: OutputFlags) =>
    withDatabase(
      async ({ db, config }) => {
        const changes = await migrate(db, collections, note);
        print({ database: config.MONGODB_DB, schemaVersion, changes }, flags);
      },
      { migrating: true },
    ),
  );
}
