import { type DescMethod, getOption } from "@bufbuild/protobuf";
import { http } from "./gen/google/api/annotations_pb.js";

/** How REST calls an RPC. */
export interface HttpRule {
  readonly method: "GET" | "POST" | "PATCH" | "DELETE";
  /** May have variables, such as `{app_id}`. */
  readonly path: string;
  /** Whether the body has all members that are not in the path; else the query has them. */
  readonly hasBody: boolean;
}

/** Reads what the schema declares with google.api.http. */
export function httpRuleOf(rpc: DescMethod): HttpRule {
  const { pattern, body } = getOption(rpc, http);
  if (typeof pattern.value !== "string") throw new Error(`${rpc.name} declares no google.api.http path`);
  return { method: pattern.case.toUpperCase() as HttpRule["method"], path: pattern.value, hasBody: body === "*" };
}
