import type { Db } from "mongodb";
import type { IdSource } from "../ids.ts";
import { GroupCommit } from "../store/group-commit.ts";
import { sharedSecret } from "../store/secrets.ts";
import { Tokens } from "../timeline/tokens.ts";
import type { AdminServices, ChangeInTurn } from "./call.ts";

/**
 * All changes write the document that tells instances of them. At the same moment they would fail each other again and
 * again, so they take turns.
 */
const createTurns = () =>
  new GroupCommit<ChangeInTurn, unknown>({
    name: "changes",
    ownerOf: ({ callerId }) => callerId,
    concurrencyMax: 1,
    batchWeightMax: 1,
    queueWeightMax: 1_000,
    run: (changes) => Promise.all(changes.map(async ({ run }) => ({ value: await run() }))),
  });

/** What the handlers need, on an instance or in a command: page tokens of one open in the other. */
export const createAdminServices = async (
  db: Db,
  services: { readonly ids: IdSource } & Omit<AdminServices, "db" | "pages" | "turns">,
): Promise<AdminServices> => ({
  ...{ db, ...services },
  pages: new Tokens(await sharedSecret(db, "admin-pages")),
  turns: createTurns(),
});
