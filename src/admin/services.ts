import type { Db } from "mongodb";
import type { IdSource } from "../ids.ts";
import { sharedSecret } from "../store/secrets.ts";
import { Tokens } from "../timeline/tokens.ts";
import type { AdminServices } from "./call.ts";

/** What the handlers need, on an instance or in a command: page tokens of one open in the other. */
export const createAdminServices = async (
  db: Db,
  services: { readonly ids: IdSource } & Omit<AdminServices, "db" | "pages">,
): Promise<AdminServices> => ({ db, ...services, pages: new Tokens(await sharedSecret(db, "admin-pages")) });
