import { timestampFromMs } from "@bufbuild/protobuf/wkt";
import { actorOf } from "./actor.ts";
import type { Handler } from "./dispatch.ts";

export const whoAmI: Handler<"whoAmI"> = async (_request, call) => {
  call.checkRole();
  const { organizationId, expiresAtMs } = call.identity;
  return {
    ...actorOf(call.identity),
    ...(organizationId === undefined ? {} : { organizationId }),
    ...(expiresAtMs === Number.POSITIVE_INFINITY ? {} : { expiresAt: timestampFromMs(expiresAtMs) }),
  };
};
