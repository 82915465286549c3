import { type ErrorCode, errorTable } from "../../errors.ts";
import { block, samples } from "./code.ts";
import { h2, type Html, html, inline, nothing, table } from "./html.ts";
import { page } from "./layout.ts";
import { nameOf, type OpenApi, type Operation, type Parameter, resolved, type Schema } from "./openapi.ts";
import { snippets } from "./snippets.ts";

interface Endpoint {
  readonly path: string;
  readonly method: string;
  readonly operation: Operation;
}

/** `ingestEvents` as a title: "Ingest events". */
const titleOf = ({ operationId }: Operation) => {
  const words = operationId.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
  return `${words[0]?.toUpperCase()}${words.slice(1)}`;
};
const capital = (text: string) => `${text[0]?.toUpperCase()}${text.slice(1)}`;

/** @param canTry whether this port serves the calls, so that forms can send them. */
export function referencePage(document: OpenApi, publicUrl: string, canTry: boolean): string {
  const endpoints: Endpoint[] = Object.entries(document.paths).flatMap(([path, methods]) =>
    Object.entries(methods).map(([method, operation]) => ({ path, method: method.toUpperCase(), operation })),
  );
  const groups = document.tags.map(({ name, description }) => {
    const ofTag = endpoints.filter(({ operation }) => operation.tags.includes(name));
    return html`<section class="group">
        ${h2(name, capital(name))}
        <p class="lead">${inline(description)}</p>
      </section>
      ${ofTag.map((endpoint) => endpointSection(document, endpoint, publicUrl, canTry))}`;
  });
  const body = html`<div class="split">
      <div>
        <h1>${document.info.title} API</h1>
        <p class="lead">${inline(document.info.description)}</p>
        <p>
          Every request carries an API key: see <a href="/docs/authentication">authentication</a>. The same calls exist
          over <a href="/docs/grpc">gRPC, gRPC-Web and Connect</a>, on the same port and with the same rules. For client
          generators: <a href="/openapi/v1.yaml">openapi/v1.yaml</a> and <a href="/openapi/v1.json">openapi/v1.json</a>.
        </p>
        <p>New here? The <a href="/docs/quickstart">quickstart</a> sends a first event and reads it back.</p>
      </div>
      <div>
        ${block(publicUrl, "text", "Base URL")}
        ${block(`Authorization: Bearer $WEPEOPLE_API_KEY`, "text", "In every request")}
      </div>
    </div>
    ${groups}`;
  return page({
    title: "API reference",
    path: "/docs",
    contents: endpoints.map(({ operation }) => ({ path: `#${operation.operationId}`, name: titleOf(operation) })),
    body,
  });
}

function endpointSection(
  document: OpenApi,
  { path, method, operation }: Endpoint,
  publicUrl: string,
  canTry: boolean,
): Html {
  const { operationId, description, requestBody } = operation;
  const parameters = (operation.parameters ?? []).map((one) => resolved(document, one as Parameter));
  const content = requestBody?.content["application/json"];
  const isStream = Object.values(operation.responses).some(
    ({ content: types = {} }) => "text/event-stream" in types || "application/x-ndjson" in types,
  );
  const call = {
    method,
    url: `${publicUrl}${path}`,
    keyVariable: operation.tags.includes("timeline") ? "WEPEOPLE_READ_KEY" : "WEPEOPLE_API_KEY",
    ...(content === undefined ? {} : { body: content.example }),
    isStream,
  };
  const [good, bad] = [
    Object.entries(operation.responses).filter(([status]) => status < "300"),
    Object.entries(operation.responses).filter(([status]) => status >= "300"),
  ];
  const codes = bad.flatMap(([status, { content: types }]) =>
    Object.keys(types?.["application/json"]?.examples ?? {}).map((code) => [status, code as ErrorCode] as const),
  );
  return html`<section class="endpoint" aria-labelledby="${operationId}">
    ${h2(operationId, titleOf(operation))}
    <p class="route"><span class="method ${method.toLowerCase()}">${method}</span> <code>${path}</code></p>
    <div class="split">
      <div>
        <p>${inline(description)}</p>
        ${parametersOf(document, "Query parameters", parameters, "query")}
        ${parametersOf(document, "Headers", parameters, "header")}
        ${
          content === undefined
            ? nothing
            : html`<h3>Body</h3>
                <p>${inline(requestBody?.description ?? "")}</p>
                ${members(document, content.schema)}`
        }
        <h3>Answers</h3>
        ${good.map(([status, { description: meaning, content: types = {} }]) => {
          const [answer] = Object.values(types);
          return html`<p><span class="status">${status}</span> ${inline(meaning)}</p>
            ${
              answer === undefined
                ? nothing
                : html`<details>
                    <summary>Members of the answer</summary>
                    ${members(document, answer.schema)}
                  </details>`
            }`;
        })}
        <h3>Errors</h3>
        ${table(
          ["status", "code", "when"],
          codes.map(([status, code]) => [
            status,
            html`<a href="/docs/errors/${code}"><code>${code}</code></a>`,
            html`${inline(errorTable[code]?.when ?? "")}`,
          ]),
        )}
      </div>
      <div class="aside">
        ${samples(snippets(call))}
        ${good.map(([status, { content: types = {} }]) => {
          const example = Object.values(types).find((one) => one.example !== undefined)?.example;
          if (example === undefined) return nothing;
          const text = typeof example === "string" ? example : JSON.stringify(example, undefined, 2);
          return block(text, "json", `Answer ${status}`);
        })}
        ${canTry ? tryIt(path, method, parameters, content?.example) : nothing}
      </div>
    </div>
  </section>`;
}

export function parametersOf(
  document: OpenApi,
  title: string,
  all: readonly Parameter[],
  place: Parameter["in"],
): Html {
  const some = all.filter((parameter) => parameter.in === place);
  if (some.length === 0) return nothing;
  return html`<h3>${title}</h3>
    <ul class="members">
      ${some.map(({ name, required = false, description, schema }) =>
        member(document, name, { ...schema, ...(description === undefined ? {} : { description }) }, required),
      )}
    </ul>`;
}

/** The members of an object, or of the objects of a list. */
export function members(document: OpenApi, given: Schema): Html {
  const schema = resolved(document, given);
  const all = Object.entries(propertiesOf(document, schema));
  if (all.length === 0) return nothing;
  return html`<ul class="members">
    ${all.map(([name, inner]) => member(document, name, inner, schema.required?.includes(name) ?? false))}
  </ul>`;
}

function propertiesOf(document: OpenApi, schema: Schema): Readonly<Record<string, Schema>> {
  const parts = (schema.allOf ?? []).map((part) => propertiesOf(document, resolved(document, part)));
  return Object.assign({}, ...parts, schema.properties);
}

function member(document: OpenApi, name: string, given: Schema, required: boolean): Html {
  const schema = resolved(document, given);
  // Where members can be: in the value itself, the entries of a list, the values of a map, or one of its forms.
  const values = typeof schema.additionalProperties === "object" ? schema.additionalProperties : undefined;
  const below = [schema, schema.items, values, ...(values === undefined ? [] : formsOf(document, values))]
    .filter((one) => one !== undefined)
    .map((one) => resolved(document, one))
    .find((one) => Object.keys(propertiesOf(document, one)).length > 0);
  const words = bounds(schema);
  return html`<li>
    <p>
      <code class="name">${name}</code> <span class="type">${typeOf(document, given)}</span>
      ${required ? html`<span class="required">required</span>` : nothing}
    </p>
    <p>${inline(schema.description ?? "")}</p>
    ${words.length === 0 ? nothing : html`<p class="bounds">${words}</p>`}
    ${
      below === undefined
        ? nothing
        : html`<details>
            <summary>Members of <code>${name}</code></summary>
            ${members(document, below)}
          </details>`
    }
  </li>`;
}

const formsOf = (document: OpenApi, schema: Schema): readonly Schema[] => {
  const { anyOf, oneOf } = resolved(document, schema);
  return (anyOf ?? oneOf ?? []).map((form) => resolved(document, form));
};

/** The type in words: `string`, `list of IngestEvent`, `number or string`. */
function typeOf(document: OpenApi, given: Schema): string {
  const schema = resolved(document, given);
  const { type, items, additionalProperties } = schema;
  const forms = formsOf(document, schema).filter((form) => form.type !== undefined);
  if (type === undefined && forms.length > 0) return forms.map((form) => typeOf(document, form)).join(" or ");
  if (items !== undefined) return `list of ${typeOf(document, items)}`;
  if (typeof additionalProperties === "object") return `map of ${typeOf(document, additionalProperties)}`;
  if (schema.format === "date-time") return "time (RFC 3339)";
  const word = typeof type === "object" ? type.join(" or ") : (type ?? "any");
  return word === "object" ? (nameOf(given) ?? word) : word;
}

function bounds(schema: Schema): Html[] {
  const { minimum, maximum, minLength = 0, maxLength, minItems = 0, maxItems, pattern, format } = schema;
  const values = schema.enum ?? (schema.const === undefined ? undefined : [schema.const]);
  const range = (from: number | undefined, to: number | undefined, unit: string) =>
    from === undefined ? `at most ${to}${unit}` : `${from} to ${to}${unit}`;
  const isSafe = (number: number | undefined) => number !== undefined && Math.abs(number) < Number.MAX_SAFE_INTEGER;
  const needed = (schema.anyOf ?? []).flatMap(({ required = [] }) => required);
  const words = [
    values && html`one of ${list(values.map((value) => html`<code>${String(value)}</code>`))}`,
    values === undefined && isSafe(maximum) && range(minimum, maximum, ""),
    maxLength !== undefined && range(minLength, maxLength, " characters"),
    maxItems !== undefined && range(minItems, maxItems, " entries"),
    schema.minProperties !== undefined && `at least ${schema.minProperties}`,
    // The pattern of a time is too long to read, and its format says the same.
    pattern !== undefined && format === undefined && html`matches <code>${pattern}</code>`,
    schema.default !== undefined && html`default <code>${String(schema.default)}</code>`,
    needed.length > 1 && html`at least one of ${list(needed.map((one) => html`<code>${one}</code>`))}`,
  ];
  return list(
    words.filter((word) => word !== undefined && word !== false).map((word) => html`${word as Html | string}`),
    "; ",
  );
}

const list = (all: readonly Html[], between = ", "): Html[] =>
  all.map((one, i) => (i === 0 ? one : html`${between}${one}`));

/** A form that sends the call from the browser. It stays hidden without the pages' script. */
function tryIt(path: string, method: string, parameters: readonly Parameter[], example: unknown): Html {
  return html`<details class="try" hidden>
    <summary>Try it</summary>
    <form action="${path}" method="${method.toLowerCase()}">
      <label>API key <input name="key" type="password" autocomplete="off" placeholder="wp_live_…" required /></label>
      ${parameters.map(
        ({ name, in: place, schema }) =>
          html`<label
            >${name}
            ${
              schema.enum === undefined
                ? html`<input name="${name}" data-in="${place}" autocomplete="off" placeholder="optional" />`
                : html`<select name="${name}" data-in="${place}">
                    <option value="">not sent</option>
                    ${schema.enum.map((value) => html`<option>${String(value)}</option>`)}
                  </select>`
            }</label
          >`,
      )}
      ${
        example === undefined
          ? nothing
          : html`<label
              >Body
              <textarea name="body" rows="12" spellcheck="false">${JSON.stringify(example, undefined, 2)}</textarea>
            </label>`
      }
      <button type="submit">Send</button>
      <p class="outcome" role="status"></p>
      <pre tabindex="0" hidden><code></code></pre>
    </form>
  </details>`;
}
