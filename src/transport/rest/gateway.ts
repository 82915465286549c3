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
import { given, invalidBody } from "../../ingest/validate.ts";
import { limits } from "../../limits.ts";
import { restNames } from "../../message-json.ts";
import { mediaTypeOf, parseJson } from "../http/body.ts";
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
  const query = queryOf(request.query);
  const json = hasBody ? await bodyOf(request) : query;
  const issues: Issue[] = [];
  if (hasBody) for (const name of Object.keys(query)) issues.push({ path: name, message: noParameter });
  else checkParameters(desc, query, variables, issues);
  for (const [name, value] of Object.entries(variables)) {
    const { jsonName } = fieldNamed(desc, name);
    const sent = json[jsonName];
    if (sent !== undefined && sent !== null && sent !== value) {
      issues.push({ path: jsonName, message: `must be '${value}' as in the path, or absent${given(sent)}` });
    }
    json[jsonName] = value;
  }
  if (request.start.method === "PATCH") addMask(desc, json, variables);
  spellEnums(desc, json, "", issues);
  if (issues.length > 0) throw invalidBody(issues);
  return fromJson(desc, checkedJson(desc, json), { ignoreUnknownFields: true });
}

const noParameter = "is not a parameter of this call";

const fieldNamed = (desc: DescMessage, name: string): DescField => {
  const field = desc.fields.find((one) => one.name === name);
  if (field === undefined) throw new Error(`${desc.typeName} has no field '${name}'`);
  return field;
};

/** @throws Fault invalid_body for a parameter given twice. */
function queryOf(query: string): Record<string, unknown> {
  const json: Record<string, unknown> = Object.create(null);
  for (const [name, value] of new URLSearchParams(query)) {
    if (name in json) throw invalidBody([{ path: name, message: "is given twice" }]);
    json[name] = value;
  }
  return json;
}

/** Gives parameters their types, and notes unknown ones: a misspelt filter would answer something else. */
function checkParameters(
  desc: DescMessage,
  query: Record<string, unknown>,
  variables: PathVariables,
  issues: Issue[],
): void {
  for (const [name, value] of Object.entries(query)) {
    const field = desc.fields.find(({ jsonName, name: own }) => jsonName === name && !(own in variables));
    if (field === undefined) issues.push({ path: name, message: noParameter });
    else if (field.scalar === ScalarType.BOOL && (value === "true" || value === "false"))
      query[name] = value === "true";
  }
}

async function bodyOf(request: RouteRequest): Promise<Record<string, unknown>> {
  const contentType = request.headers["content-type"];
  const bytes = await request.readBody(limits.bodyBytesMax);
  // An action may have nothing to say.
  if (bytes.length === 0 && contentType === undefined) return {};
  if (mediaTypeOf(contentType) !== "application/json") {
    const sent = contentType === undefined ? "missing" : `'${contentType}'`;
    throw invalidBody([{ path: "Content-Type", message: `must be application/json; it is ${sent}` }]);
  }
  const json = parseJson(bytes);
  if (isRecord(json)) return json;
  throw invalidBody([{ path: "body", message: `must be an object${given(json)}` }]);
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

/** Gives REST's enum names protobuf's spelling, and notes unknown ones. */
function spellEnums(desc: DescMessage, json: Record<string, unknown>, path: string, issues: Issue[]): void {
  for (const field of desc.fields) {
    const value = json[field.jsonName];
    if (value === undefined || value === null || field.fieldKind === "map") continue;
    const place = path === "" ? field.jsonName : `${path}.${field.jsonName}`;
    const { enum: values } = field;
    if (values === undefined) {
      if (field.fieldKind === "message" && !field.message.typeName.startsWith("google.") && isRecord(value)) {
        spellEnums(field.message, value, place, issues);
      }
    } else if (field.fieldKind === "list" && Array.isArray(value)) {
      json[field.jsonName] = value.map((item: unknown, i) => spelled(values, item, `${place}[${i}]`, issues));
    } else if (field.fieldKind === "enum") json[field.jsonName] = spelled(values, value, place, issues);
  }
}

function spelled(desc: DescEnum, value: unknown, path: string, issues: Issue[]): unknown {
  const names = restNames(desc);
  if (typeof value === "string" && names.includes(value)) return `${desc.sharedPrefix ?? ""}${value}`.toUpperCase();
  issues.push({ path, message: `must be one of ${names.join(", ")}${given(value)}` });
  return desc.values[0]?.name;
}
