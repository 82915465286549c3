import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import { instanceSigns } from "../store/instances.ts";
import type { Handler } from "./dispatch.ts";

export const listInstances: Handler<"listInstances"> = async (_request, call) => {
  call.checkRole();
  const signs = await instanceSigns(call.db);
  const instances = signs
    .sort((a, b) => (a.name < b.name ? -1 : 1))
    .map(({ _id: id, name, seenAt, isRunning, schemaVersion }) => ({
      ...{ id, name, running: isRunning },
      seenAt: timestampFromDate(seenAt),
      ...(schemaVersion === undefined ? {} : { schemaVersion }),
    }));
  return { instances };
};
