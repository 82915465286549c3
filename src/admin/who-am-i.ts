import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { ActorKind, Role } from "../gen/ingest/admin/v1/admin_pb.js";
import type { Handler } from "./dispatch.ts";

export const whoAmI: Handler<"whoAmI"> = async (_request, call) => {
  call.checkRole();
  const { kind, id, name, role, organizationId, expiresAtMs } = call.identity;
  return {
    ...{ id, name },
    kind: ActorKind[kind.toUpperCase() as "TOKEN"],
    role: Role[role.toUpperCase() as "VIEWER"],
    ...(organizationId === undefined ? {} : { organizationId }),
    ...(expiresAtMs === Number.POSITIVE_INFINITY ? {} : { expiresAt: timestampFromMs(expiresAtMs) }),
  };
};
