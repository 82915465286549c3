import { type DescEnum, type DescField, type DescMessage, type DescMethod, ScalarType } from "@bufbuild/protobuf";
import { type AdminRpc, leastRoles } from "../admin/roles.ts";
import { type ErrorCode, errorTable } from "../errors.ts";
import { Admin } from "../gen/ingest/admin/v1/admin_pb.js";
import { httpRuleOf } from "../http-rule.ts";
import { named } from "../ingest/shapes.ts";
import type { JsonSchema, Shape } from "../ingest/validate.ts";
import { apiVersion, limits } from "../limits.ts";
import { restName, restNames } from "../message-json.ts";
import { readComments } from "../proto-comments.ts";
import { componentsOf, exampleId, operation, said, streamOf, streamTypes } from "./parts.ts";

/** Describes the administration API from its descriptors and their comments. */

/** The groups of calls, by the last name in their paths. */
const tags: Readonly<Record<string, string>> = {
  whoami: "The credential that calls.",
  organizations: "Organisations with their plans.",
  usage: "What organisations have sent.",
  traffic: "How many requests organisations make, and how long they take.",
  apps: "The apps of an organisation, and the event types that they may send.",
  keys: "The keys with which apps send and read.",
  workers: "The people and programs whose work is reported.",
  erasures: "The removal of all that is known about a worker.",
  requests: "What became of requests of `ingest.v1`.",
  tokens: "The access tokens of this API.",
  audit: "Who changed what.",
  instances: "The processes that serve.",
};

/** Bodies of examples. A test checks that every call with a required member has one, and that they fit. */
export const adminExamples: Partial<Record<AdminRpc, object>> = {
  createOrganization: { name: "Acme", quotaEventsPerMonth: 1_000_000, idempotencyKey: "make-acme" },
  updateOrganization: { name: "Acme Inc.", retentionDays: null },
  createApp: { slug: "crm-hub", name: "CRM Hub", allow: ["ticket.*"] },
  updateApp: { allow: ["ticket.*", "call.*"] },
  previewAllow: { allow: ["ticket.*"] },
  createKey: { name: "Production", eventTypes: ["ticket.resolved"], cidrs: ["203.0.113.0/24"] },
  updateKey: { name: "Production, Frankfurt", cidrs: ["203.0.113.0/25"] },
  rotateKey: { grace: "86400s" },
  revokeKey: { wait: true },
  findKey: { secret: `wp_live_${"0".repeat(32)}`, revoke: true },
  updateWorker: { displayName: "Alex Chen" },
  dropCard: { appId: exampleId("app"), snapshotType: "tickets_open" },
  mergeWorkers: { intoWorkerId: exampleId("wrk") },
  findErasure: { appId: exampleId("app"), email: "alex@example.com" },
  createToken: { name: "Terraform", role: "operator", expiresAt: "2030-01-01T00:00:00Z" },
};

const accessCodes = [
  "missing_authorization",
  "invalid_key",
  "key_revoked",
  "key_expired",
  "forbidden_scope",
  "rate_limited",
  "internal_error",
  "invalid_body",
] as const satisfies readonly ErrorCode[];

/** Codes of a call beside those that follow from its request. */
const ownCodes: Partial<Record<AdminRpc, readonly ErrorCode[]>> = {
  createApp: ["already_exists"],
  recountUsage: ["failed_precondition"],
  updateKey: ["failed_precondition"],
  rotateKey: ["failed_precondition"],
  findKey: ["not_found"],
  mergeWorkers: ["failed_precondition"],
  eraseWorker: ["failed_precondition"],
  findErasure: ["not_found"],
  allowWorkerAgain: ["failed_precondition"],
  createToken: ["not_found"],
  listTokens: ["not_found"],
  revokeToken: ["failed_precondition"],
  listAuditEntries: ["not_found"],
};

/** Messages of this API where it words an error differently. */
export const adminMessages: Partial<Record<ErrorCode, string>> = {
  missing_authorization: "No Authorization header; send 'Authorization: Bearer wp_adm_…'.",
  invalid_key: "The access token does not exist.",
  key_revoked: "The access token wp_adm_ab12… was revoked.",
  key_expired: "The access token wp_adm_ab12… expired at 2026-04-19T12:05:00.000Z.",
  rate_limited: "The access token is limited to 100 requests a second; retry after 1 s.",
  forbidden_scope: "Your credential has the role 'viewer'; CreateApp needs the role 'manager'.",
  invalid_body: "name: must not be empty; it is ''",
  batch_too_large: `The body is larger than ${limits.bodyBytesMax} bytes after decompression.`,
  not_found: "There is no app with the id 'app_01HP3K5V4J3M9NVT8XZKQ9YQ2E'.",
};

const methods = Object.entries(Admin.method) as [AdminRpc, DescMethod][];

/** The OpenAPI document of the administration API. */
export async function adminDocument(): Promise<object> {
  const schemas = new MessageSchemas(await readComments());
  const paths: Record<string, Record<string, object>> = {};
  const responses: Record<string, unknown> = {};
  const codes = new Set<ErrorCode>(accessCodes);
  for (const [rpc, method] of methods) {
    const call = callOf(method);
    for (const code of codesOf(rpc, method)) codes.add(code);
    (paths[call.path] ??= {})[call.verb] = shareErrors(operationOf(rpc, method, schemas), responses);
  }
  const inOrder = (Object.keys(errorTable) as ErrorCode[]).filter((code) => codes.has(code));
  const { schemas: errors, ...components } = componentsOf(inOrder, adminMessages);
  const used = new Set(methods.map(([, method]) => callOf(method).tag));
  return {
    openapi: "3.1.1",
    info: {
      title: "Ingest administration",
      version: apiVersion,
      description: schemas.textOf(Admin.file.proto.package),
      license: { name: "Proprietary", identifier: "LicenseRef-Proprietary" },
    },
    servers: [{ url: "/" }],
    tags: Object.entries(tags)
      .filter(([name]) => used.has(name))
      .map(([name, description]) => ({ name, description })),
    paths,
    components: {
      ...components,
      responses,
      schemas: { ...errors, ...schemas.definitions },
      securitySchemes: {
        bearerAuth: {
          type: "http",
          scheme: "bearer",
          bearerFormat: "wp_adm_<32 hex><8 hex>",
          description:
            "An access token: wp_adm_ and 40 hexadecimal digits, of which the last 8 are the CRC-32 of the others. Or a JWT of the installation's OIDC issuer.",
        },
      },
    },
  };
}

/** Moves an operation's errors to the components: many calls have the same ones. */
function shareErrors(operation: any, shared: Record<string, unknown>): object {
  const responses = Object.entries<any>(operation.responses).map(([status, response]) => {
    const examples = response.content["application/json"]?.examples;
    if (examples === undefined) return [status, response];
    const name = Object.keys(examples).join(".");
    shared[name] = response;
    return [status, { $ref: `#/components/responses/${name}` }];
  });
  return { ...operation, responses: Object.fromEntries(responses) };
}

/** How REST calls an RPC. */
function callOf(method: DescMethod) {
  const { method: verb, path: template, hasBody } = httpRuleOf(method);
  const variables = [...template.matchAll(/\{(\w+)\}/g)].map(([, name]) => fieldNamed(method.input, name ?? ""));
  const path = template.replaceAll(/\{(\w+)\}/g, (_, name: string) => `{${fieldNamed(method.input, name).jsonName}}`);
  const tag = path
    .split("/")
    .filter((segment) => !segment.startsWith("{"))
    .at(-1)
    ?.split(":")[0] as string;
  return { path, verb: verb.toLowerCase(), tag, variables, hasBody };
}

const fieldNamed = ({ fields, typeName }: DescMessage, name: string): DescField => {
  const field = fields.find((one) => one.name === name);
  if (field === undefined) throw new Error(`${typeName} has no field '${name}'`);
  return field;
};

function codesOf(rpc: AdminRpc, method: DescMethod): readonly ErrorCode[] {
  const { variables, hasBody } = callOf(method);
  return [
    ...(hasBody ? ["batch_too_large" as const] : []),
    ...(variables.length > 0 ? ["not_found" as const] : []),
    ...(method.input.fields.some(({ name }) => name === "etag") ? ["conflict" as const] : []),
    ...(ownCodes[rpc] ?? []),
  ];
}

function operationOf(rpc: AdminRpc, method: DescMethod, schemas: MessageSchemas): object {
  const { verb, tag, variables, hasBody } = callOf(method);
  const comment = schemas.textOf(`${Admin.typeName}.${method.name}`);
  const role = comment.includes("Role:") ? "" : ` Role: ${leastRoles[rpc]}.`;
  const others = method.input.fields.filter((field) => !variables.includes(field));
  const isStream = method.methodKind === "server_streaming";
  const answer = schemas.answer(method.output);
  const required = schemas.requiredOf(others);
  const clearing = verb === "patch" ? " A member that is `null` is cleared." : "";
  const example = adminExamples[rpc];
  return operation({
    operationId: rpc,
    summary: comment.split(/\. |\.$/)[0] as string,
    description: `${comment}${role}`,
    tag,
    parameters: [
      ...variables.map((field) => schemas.parameter(method.input, field, "path")),
      ...(hasBody ? [] : others.map((field) => schemas.parameter(method.input, field, "query"))),
    ],
    ...(hasBody
      ? {
          requestBody: {
            required: required.length > 0,
            description: `At most ${limits.bodyBytesMax} bytes. Unknown members are ignored.${clearing}`,
            content: {
              "application/json": {
                schema: schemas.body(method.input, others, verb === "patch").schema,
                ...(example === undefined ? {} : { example }),
              },
            },
          },
        }
      : {}),
    successes: {
      "200": isStream
        ? {
            description: `An endless stream of \`${method.output.name}\`; see the description of the call.`,
            shape: streamOf(streamTypes[0], answer),
            contentTypes: streamTypes,
          }
        : { description: schemas.textOf(method.output.typeName), shape: answer },
    },
    access: accessCodes,
    // A key of ingest.v1 is forbidden_scope.
    codes: codesOf(rpc, method),
  });
}

/** The schemas of messages and enums, with descriptions from the comments. */
class MessageSchemas {
  readonly #comments: ReadonlyMap<string, string>;
  readonly definitions: Record<string, JsonSchema> = {};

  constructor(comments: ReadonlyMap<string, string>) {
    this.#comments = comments;
  }

  /** A comment as one text, in REST's names. */
  textOf(fullName: string): string {
    const lines = (this.#comments.get(fullName) ?? "").split("\n").map((line) => line.trim());
    // Lines of a list stay lines.
    const comment = lines
      .filter((line) => line !== "")
      .map((line, i) => `${i === 0 ? "" : line.startsWith("- ") ? "\n" : " "}${line}`)
      .join("");
    const [reference, typeName, member] = /^See (\w+)\.(\w+)/.exec(comment) ?? [];
    const prefix = `${Admin.file.proto.package}.`;
    if (reference !== undefined) {
      const referred = this.textOf(`${prefix}${typeName}.${member}`).replace(/\.$/, "");
      return `${referred}${comment.slice(reference.length)}`;
    }
    return comment.replaceAll(/\b[a-z]+(?:_[a-z]+)+\b/g, (name) => restFieldNames.get(name) ?? name).trim();
  }

  /** Members that a request must have: those that count as given even if they are absent, and that have no default. */
  requiredOf(fields: readonly DescField[]): string[] {
    return fields
      .filter((field) => !hasPresence(field) && (field.fieldKind === "enum" || field.scalar === ScalarType.STRING))
      .filter(({ fieldKind }) => fieldKind !== "list")
      .map(({ jsonName }) => jsonName);
  }

  parameter(message: DescMessage, field: DescField, place: "path" | "query"): object {
    const { description, ...schema } = this.#schemaOf(message, field) as { description?: string };
    const required = place === "path" || this.requiredOf([field]).length > 0;
    return { name: field.jsonName, in: place, required, description, schema };
  }

  /** The members of a request's body. @param isClearing whether null clears a member. */
  body(message: DescMessage, fields: readonly DescField[], isClearing: boolean): Shape<unknown> {
    const required = this.requiredOf(fields);
    const properties = Object.fromEntries(
      fields.map((field) => {
        const schema = this.#schemaOf(message, field);
        const isFixed = field.name === "update_mask" || field.name === "etag";
        return [field.jsonName, isClearing && !isFixed ? { ...schema, type: [schema.type, "null"] } : schema];
      }),
    );
    return this.#define(message, { type: "object", properties, ...(required.length > 0 ? { required } : {}) });
  }

  answer(message: DescMessage): Shape<unknown> {
    if (message.name in this.definitions) return reference(message.name);
    const required = message.fields.filter((field) => !hasPresence(field)).map(({ jsonName }) => jsonName);
    const schema = {
      type: "object",
      properties: Object.fromEntries(message.fields.map((field) => [field.jsonName, this.#schemaOf(message, field)])),
      ...(required.length > 0 ? { required } : {}),
      additionalProperties: false,
    };
    return this.#define(message, schema);
  }

  #define({ name, typeName }: DescMessage | DescEnum, schema: JsonSchema): Shape<unknown> {
    const shape = named(name, this.textOf(typeName), said(schema));
    Object.assign(this.definitions, shape.definitions);
    return shape;
  }

  #schemaOf(message: DescMessage, field: DescField): JsonSchema {
    const description = this.textOf(`${message.typeName}.${field.name}`);
    if (field.fieldKind === "list") return { type: "array", items: this.#valueOf(field), description };
    return { ...this.#valueOf(field), description };
  }

  #valueOf({ message, enum: values, scalar }: DescField): JsonSchema {
    if (values !== undefined) return this.#enumOf(values);
    if (message !== undefined) return wellKnown[message.typeName] ?? this.answer(message).schema;
    const schema = scalar === undefined ? undefined : scalars[scalar];
    if (schema === undefined) throw new Error(`no schema for the scalar ${scalar}`);
    return schema;
  }

  #enumOf(desc: DescEnum): JsonSchema {
    if (desc.name in this.definitions) return reference(desc.name).schema;
    const meanings = desc.values
      .filter(({ number }) => number !== 0)
      .map(({ name, number }) => `\`${restName(desc, number)}\`: ${this.textOf(`${desc.typeName}.${name}`)}`);
    const about = this.textOf(desc.typeName).replace(/ In REST(?: JSON)?: .*$/, "");
    const shape = named(desc.name, [about, ...meanings].join(" "), said({ type: "string", enum: restNames(desc) }));
    Object.assign(this.definitions, shape.definitions);
    return shape.schema;
  }
}

const reference = (name: string): Shape<unknown> => said({ $ref: `#/components/schemas/${name}` });

const hasPresence = ({ fieldKind, proto, oneof }: DescField): boolean =>
  fieldKind === "message" || proto.proto3Optional || oneof !== undefined;

/** REST's names of the fields by the schema's. */
const restFieldNames: ReadonlyMap<string, string> = new Map(
  Admin.file.messages.flatMap(({ fields }) => fields.map(({ name, jsonName }) => [name, jsonName] as const)),
);

const wellKnown: Readonly<Record<string, JsonSchema>> = {
  "google.protobuf.Timestamp": { type: "string", format: "date-time" },
  "google.protobuf.Duration": { type: "string", pattern: String.raw`^-?\d+(\.\d{1,9})?s$` },
  "google.protobuf.FieldMask": { type: "string" },
  "google.protobuf.Struct": { type: "object", additionalProperties: true },
};

const scalars: { readonly [Type in ScalarType]?: JsonSchema } = {
  [ScalarType.STRING]: { type: "string" },
  [ScalarType.BOOL]: { type: "boolean" },
  [ScalarType.DOUBLE]: { type: "number" },
  [ScalarType.INT32]: { type: "integer", format: "int32" },
};
