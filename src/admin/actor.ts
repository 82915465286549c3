import type { Identity } from "../access/identity.ts";
import { ActorKind, Role } from "../gen/ingest/admin/v1/admin_pb.js";

/** Who calls, or who made a change, as messages say it. */
export const actorOf = ({ kind, id, name, role }: Pick<Identity, "kind" | "id" | "name" | "role">) => ({
  ...{ id, name },
  kind: ActorKind[kind.toUpperCase() as "TOKEN"],
  role: Role[role.toUpperCase() as "VIEWER"],
});
