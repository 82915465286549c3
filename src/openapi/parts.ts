import type { DescMethod } from "@bufbuild/protobuf";
import { docsUrl, type ErrorCode, type ErrorDefinition, errorTable } from "../errors.ts";
import { type AnswerHeader, answerHeaderTable, type HeaderDefinition } from "../headers.ts";
import { httpRuleOf } from "../http-rule.ts";
import type { IdPrefix } from "../ids.ts";
import { type Members, named, object } from "../ingest/shapes.ts";
import type { JsonSchema, Shape } from "../ingest/validate.ts";

/** The parts that the descriptions of all calls share. */

/** A part of an answer. Ingest writes answers and never reads them, so only the schema counts. */
export const said = (schema: JsonSchema, ...within: readonly Shape<unknown>[]): Shape<unknown> => ({
  schema,
  definitions: Object.assign({}, ...within.map(({ definitions }) => definitions)),
  read: (value) => value,
});

export const text = (description: string) => said({ type: "string", description });
export const time = (description: string) => said({ type: "string", format: "date-time", description });
export const list = (description: string, items: Shape<unknown>) =>
  said({ type: "array", items: items.schema, description }, items);

/** An object in an answer, with exactly these members. */
export function answer(name: string, description: string, members: Members): Shape<unknown> {
  const { schema, definitions } = object(members);
  return named(name, description, { ...said({ ...schema, additionalProperties: false }), definitions });
}

export const exampleId = (prefix: IdPrefix) => `${prefix}_01HP3K5V4J3M9NVT8XZKQ9YQ2E`;

export const requestId = said({ type: "string", description: "req_ and a ULID.", example: exampleId("req") });
export const worker = answer("Worker", "The worker that the actor names.", {
  id: text("wrk_ and a ULID. You may send it as workerId."),
  displayName: text("The name to show."),
});

/** An example of a parameter. Viewers such as Scalar show it, but do not send it by default. */
export const unticked = (value: unknown) => ({ example: { value, "x-disabled": true } });

const isPublic = ([, definition]: [string, ErrorDefinition]) => definition.isOfAdmin !== true;
const publicCodes = Object.entries(errorTable).filter(isPublic).map(([code]) => code as ErrorCode);
const errorAnswer = (codes: readonly ErrorCode[]) =>
  answer("Error", "Every error has this form, with exactly these members.", {
    error: answer("ErrorDetail", "What went wrong.", {
      code: named("ErrorCode", "What went wrong, for programs.", said({ type: "string", enum: codes })),
      message: text("What went wrong, as text for people. The wording may change."),
      requestId,
      docsUrl: said({ type: "string", format: "uri", description: "A page about the code." }),
    }),
  });

/** A placeholder for PUBLIC_URL. */
const exampleUrl = "https://ingest.example";

const errorExample = (code: ErrorCode, message: string = errorTable[code].example) => ({
  summary: errorTable[code].when,
  value: {
    error: {
      code,
      message,
      requestId: exampleId("req"),
      docsUrl: docsUrl(exampleUrl, code),
    },
  },
});

const headerObject = ({ when, meaning, schema, example }: HeaderDefinition, required: boolean) => ({
  description: `${meaning} ${when[0]?.toUpperCase()}${when.slice(1)}.`,
  ...(required ? { required } : {}),
  schema,
  example,
});

function headersOf(always: readonly AnswerHeader[], sometimes: readonly AnswerHeader[]) {
  return Object.fromEntries([
    ...always.map((name) => {
      const { name: shown } = answerHeaderTable[name];
      return [shown, { $ref: `#/components/headers/${shown}` }] as const;
    }),
    ...sometimes.map((name) => [answerHeaderTable[name].name, headerObject(answerHeaderTable[name], false)] as const),
  ]);
}

const always = ["x-request-id", "x-api-version"] as const;
const ofTheKey = ["x-ratelimit-limit", "x-ratelimit-remaining", "ratelimit-policy", "ratelimit"] as const;

/** Components that all calls refer to. @param messages examples of errors, where they differ from the table's. */
export const componentsOf = (codes: readonly ErrorCode[], messages: Partial<Record<ErrorCode, string>> = {}) => ({
  schemas: errorAnswer(codes).definitions,
  headers: Object.fromEntries(
    [...always, ...ofTheKey, "www-authenticate" as const, "retry-after" as const].map((name) => {
      const header = answerHeaderTable[name];
      return [header.name, headerObject(header, true)];
    }),
  ),
  examples: Object.fromEntries(codes.map((code) => [code, errorExample(code, messages[code])])),
});

export const components = (() => {
  const { examples, ...all } = componentsOf(publicCodes);
  // No documented call answers with these two.
  const { not_found: _, method_not_allowed: _method, ...described } = examples;
  return { ...all, examples: described };
})();

/** The headers of an error depend on the check that failed, which the status tells. */
function errorHeaders(status: number, sometimes: readonly AnswerHeader[]) {
  switch (status) {
    case 400:
    case 403:
      // Two credentials, or one for another API: such a caller is not known, and has no rate.
      return headersOf(always, [...ofTheKey, ...sometimes]);
    case 401:
      return headersOf([...always, "www-authenticate"], ofTheKey);
    case 429:
      return headersOf([...always, ...ofTheKey, "retry-after"], []);
    case 500:
      return headersOf(always, [...ofTheKey, "retry-after", ...sometimes]);
    default:
      return headersOf([...always, ...ofTheKey], sometimes);
  }
}

function errorResponses(used: readonly ErrorCode[], sometimes: readonly AnswerHeader[]) {
  const byStatus = Map.groupBy(used, (code) => errorTable[code].http);
  return Object.fromEntries(
    [...byStatus]
      .sort(([a], [b]) => a - b)
      .map(([status, list]) => [
        String(status),
        {
          description: list.map((code) => `\`${code}\`: ${errorTable[code].when}`).join(" "),
          headers: errorHeaders(status, sometimes),
          content: {
            "application/json": {
              schema: { $ref: "#/components/schemas/Error" },
              examples: Object.fromEntries(list.map((code) => [code, { $ref: `#/components/examples/${code}` }])),
            },
          },
        },
      ]),
  );
}

/** A success, without its headers. */
export interface Success {
  readonly description: string;
  readonly shape: Shape<unknown>;
  readonly example?: unknown;
  /** Default: application/json. */
  readonly contentTypes?: readonly string[];
}

export interface OperationOptions {
  readonly operationId: string;
  readonly summary: string;
  readonly description: string;
  readonly tag: string;
  readonly parameters?: readonly object[];
  readonly requestBody?: object;
  readonly successes: Readonly<Record<string, Success>>;
  /** Error codes beyond those of access. */
  readonly codes: readonly ErrorCode[];
  /** Codes that the check of the credential may answer. Default: those of a key. */
  readonly access?: readonly ErrorCode[];
  /** Optional headers beyond those of every call. */
  readonly sometimes?: readonly AnswerHeader[];
}

const keyCodes = [
  "missing_authorization",
  "invalid_key",
  "key_revoked",
  "key_expired",
  "plan_disabled",
  "rate_limited",
  "internal_error",
] as const satisfies readonly ErrorCode[];

export function operation(options: OperationOptions): object {
  const { operationId, summary, description, tag, parameters, requestBody, successes, codes, sometimes = [] } = options;
  const { access = keyCodes } = options;
  const answers = Object.entries(successes).map(([status, { description, shape, example, contentTypes }]) => {
    const content = { schema: shape.schema, ...(example === undefined ? {} : { example }) };
    return [
      status,
      {
        description,
        headers: headersOf([...always, ...ofTheKey], sometimes),
        content: Object.fromEntries((contentTypes ?? ["application/json"]).map((type) => [type, content])),
      },
    ] as const;
  });
  // Only a success is replayed.
  const onErrors = sometimes.filter((name) => name !== "idempotency-replayed");
  return {
    operationId,
    summary,
    description,
    tags: [tag],
    security: [{ bearerAuth: [] }],
    ...(parameters === undefined ? {} : { parameters }),
    ...(requestBody === undefined ? {} : { requestBody }),
    responses: { ...Object.fromEntries(answers), ...errorResponses([...access, ...codes], onErrors) },
  };
}

/** A stream of messages. Generators see a text, because no schema can describe a stream. */
export const streamOf = (contentMediaType: string, message: Shape<unknown>) =>
  said({ type: "string", contentMediaType, contentSchema: message.schema }, message);

export const streamTypes = ["application/x-ndjson", "text/event-stream"] as const;

export const pathOf = (method: DescMethod): string => httpRuleOf(method).path;
