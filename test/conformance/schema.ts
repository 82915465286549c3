import { readFileSync } from "node:fs";
import { createFileRegistry, type DescMessage, type DescMethod, fromBinary } from "@bufbuild/protobuf";
import { FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { imagePath } from "./tools.ts";

/** The suite's schema, read at run time, so that the project keeps no copy of it. */
export const registry = createFileRegistry(fromBinary(FileDescriptorSetSchema, readFileSync(imagePath)));

const packageName = "connectrpc.conformance.v1";

export function message(name: string): DescMessage {
  const desc = registry.getMessage(`${packageName}.${name}`);
  if (desc === undefined) throw new Error(`the suite has no message ${name}`);
  return desc;
}

export function method<Kind extends DescMethod["methodKind"]>(
  name: string,
  kind: Kind,
): DescMethod & { methodKind: Kind } {
  const desc = registry.getService(`${packageName}.ConformanceService`)?.method[name];
  if (desc?.methodKind !== kind) throw new Error(`the suite has no ${kind} method ${name}`);
  return desc as DescMethod & { methodKind: Kind };
}
