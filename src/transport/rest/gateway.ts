import {
  create,
  type DescEnum,
  type DescField,
  type DescMessage,
  fromJson,
  type Message,
  ScalarType,
  toJson,
} from "@bufbuild/protobuf";
import { FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import type { Issue } from "../../errors.ts";
import { isRecord } from "../../ingest/shapes.ts";
import { given, invalidBody, invalidMember, shownPath } from "../../ingest/validate.ts";
import { limits } from "../../limits.ts";
import { restNames } from "../../message-json.ts";
import { checkJsonType, parseJson } from "../http/body.ts";
import type { RouteRequest } from "../http/route.ts";
import { checkedJson } from "../rpc/json-check.ts";

/** The values of a path's variables, by the names of the fields. */
export type PathVariables = Readonly<Record<string, string>>;

/**
 * Reads the message of a REST call, as google.api.http describes it: fields from the path, and the others from the body
 * or, without one, from the query.
 * @throws Fault invalid_body with one issue for each problem.
 */
export async function readMessage<Desc extends DescMessage>(
  desc: Desc,
  request: RouteRequest,
  variables: PathVariables,
  hasBody: boolean,
): Promise<Message> {
  const { method } = request.start;
  const issues: Issue[] = [];
  const query = queryOf(desc, request.query, variables, hasBody, issues);
  // A member of an ignored body, such as an etag, would seem to work.
  const body = hasBody || method === "DELETE" ? await bodyOf(request) : {};
  const parameters = hasBody ? [] : desc.fields.filter(({ name }) => !(name in variables));
  const misplaced = parameters.flatMap(({ name, jsonName }) =>
    [...new Set([jsonName, name])].filter((one) => Object.hasOwn(body, one)),
  );
  for (const name of misplaced)
    issues.push({ path: shownPath(name), message: "must be a query parameter of this call" });
  return messageOf(desc, hasBody ? body : query, variables, method === "PATCH", issues);
}

/**
 * The message of a REST call's members.
 * @param isUpdate whether the members that are present are the update mask, unless there is one.
 * @param issues problems that are known already.
 * @throws Fault invalid_body with one issue for each problem.
 */
export function messageOf(
  desc: DescMessage,
  members: Readonly<Record<string, unknown>>,
  variables: PathVariables = {},
  isUpdate = false,
  issues: Issue[] = [],
): Message {
  const json = knownMembers(desc, members, "", issues);
  for (const [name, value] of Object.entries(variables)) {
    const { jsonName } = fieldNamed(desc, name);
    const sent = json[jsonName];
    if (sent !== undefined && sent !== null && sent !== value) {
      issues.push({ path: jsonName, message: `must be as in the path, or absent${given(sent)}` });
    }
    json[jsonName] = value;
  }
  if (isUpdate) addMask(desc, json, variables);
  if (issues.length > 0) throw invalidBody(issues);
  const checked = checkedJson(desc, json);
  try {
    return fromJson(desc, checked);
  } catch (error) {
    throw invalidMember("body", "cannot be read", error);
  }
}

const fieldNamed = (desc: DescMessage, name: string): DescField => {
  const field = desc.fields.find((one) => one.name === name);
  if (field === undefined) throw new Error(`${desc.typeName} has no field '${name}'`);
  return field;
};

/** The query's parameters, with their types. Notes unknown ones: a misspelt filter would answer something else. */
function queryOf(
  desc: DescMessage,
  query: string,
  variables: PathVariables,
  hasBody: boolean,
  issues: Issue[],
): Record<string, unknown> {
  const fields = hasBody ? [] : desc.fields.filter(({ name }) => !(name in variables));
  const allowed = fields.map(({ jsonName }) => jsonName).join(", ");
  const unknown = `is not a parameter of this call${allowed === "" ? "" : `; allowed: ${allowed}`}`;
  const json: Record<string, unknown> = Object.create(null);
  for (const [name, value] of new URLSearchParams(query)) {
    const field = fields.find(({ jsonName }) => jsonName === name);
    if (field === undefined) issues.push({ path: shownPath(name), message: unknown });
    else if (name in json) issues.push({ path: name, message: "is given twice" });
    else if (field.scalar === ScalarType.BOOL && (value === "true" || value === "false")) json[name] = value === "true";
    else json[name] = value;
  }
  return json;
}

async function bodyOf(request: RouteRequest): Promise<Record<string, unknown>> {
  const contentType = request.headers["content-type"];
  // An action may have nothing to say, whatever its type is.
  const bytes = await request.readBody(limits.bodyBytesMax).catch((error: unknown) => {
    checkJsonType(contentType);
    throw error;
  });
  if (bytes.length === 0) return {};
  checkJsonType(contentType);
  const json = parseJson(bytes);
  if (isRecord(json)) return json;
  throw invalidMember("body", `must be an object${given(json)}`);
}

/** Without a mask, the members that are present are the mask, and `null` clears one. */
function addMask(desc: DescMessage, json: Record<string, unknown>, variables: PathVariables): void {
  if (json.updateMask !== undefined && json.updateMask !== null) return;
  const paths = desc.fields
    .filter(({ name }) => !(name in variables) && name !== "update_mask" && name !== "etag")
    .filter(({ jsonName }) => json[jsonName] !== undefined)
    .map(({ name }) => name);
  json.updateMask = toJson(FieldMaskSchema, create(FieldMaskSchema, { paths }));
}

/** The members that the message has, with protobuf's names of enum values. Both of a field's names are valid. */
function knownMembers(
  desc: DescMessage,
  json: Readonly<Record<string, unknown>>,
  path: string,
  issues: Issue[],
): Record<string, unknown> {
  // Names such as __proto__ are ordinary here.
  const known: Record<string, unknown> = Object.create(null);
  for (const field of desc.fields) {
    const { jsonName, name } = field;
    const place = path === "" ? jsonName : `${path}.${jsonName}`;
    const names = [...new Set([jsonName, name])].filter((one) => Object.hasOwn(json, one));
    if (names.length === 2) issues.push({ path: place, message: `is the same member as ${name}; send one of them` });
    if (names[0] !== undefined) known[jsonName] = spelledValue(field, json[names[0]], place, issues);
  }
  return known;
}

function spelledValue(field: DescField, value: unknown, path: string, issues: Issue[]): unknown {
  if (value === null) return null;
  switch (field.fieldKind) {
    case "enum":
      return spelled(field.enum, value, path, issues);
    case "list":
      return field.enum === undefined || !Array.isArray(value)
        ? value
        : value.map((item: unknown, i) => spelled(field.enum, item, `${path}[${i}]`, issues));
    case "message":
      return isRecord(value) && !field.message.typeName.startsWith("google.")
        ? knownMembers(field.message, value, path, issues)
        : value;
    default:
      return value;
  }
}

function spelled(desc: DescEnum, value: unknown, path: string, issues: Issue[]): unknown {
  const names = restNames(desc);
  if (typeof value === "string" && names.includes(value)) return `${desc.sharedPrefix ?? ""}${value}`.toUpperCase();
  issues.push({ path, message: `must be one of ${names.join(", ")}${given(value)}` });
  return desc.values[0]?.name;
}
