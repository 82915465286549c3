import { type DescMessage, type DescMethod, toJson } from "@bufbuild/protobuf";
import { type AdminRpc, leastRoles } from "../../admin/roles.ts";
import { type ErrorCode, errorTable } from "../../errors.ts";
import { Admin } from "../../gen/ingest/admin/v1/admin_pb.js";
import { messageOf } from "../rest/gateway.ts";
import { block, samples } from "./code.ts";
import { h2, type Html, html, inline, nothing, table } from "./html.ts";
import { page } from "./layout.ts";
import { type OpenApi, type Operation, type Parameter, resolved } from "./openapi.ts";
import { bufCurl } from "./reactions.ts";
import { members, parametersOf } from "./reference.ts";

interface Call {
  readonly path: string;
  readonly verb: string;
  readonly rpc: AdminRpc;
  readonly method: DescMethod;
  readonly operation: Operation;
}

/** The RPCs of administration by their objects. @param url of administration; undefined on a port without it */
export function adminPage(document: OpenApi, url: string | undefined): string {
  const calls: Call[] = Object.entries(document.paths).flatMap(([path, item]) =>
    Object.entries(item).map(([verb, operation]) => {
      const rpc = operation.operationId as AdminRpc;
      return { path, verb, rpc, method: Admin.method[rpc] as DescMethod, operation };
    }),
  );
  const groups = document.tags.map(({ name, description }) => {
    const ofTag = calls.filter(({ operation }) => operation.tags.includes(name));
    return html`<section class="group">
        ${h2(name, titleOf(name))}
        <p class="lead">${inline(description)}</p>
        ${table(
          ["RPC", "REST", "role", "meaning"],
          ofTag.map(({ path, verb, rpc, method, operation }) => [
            html`<a href="#${rpc}"><code>${method.name}</code></a>`,
            html`<code>${verb.toUpperCase()} ${path.slice(root.length)}</code>`,
            leastRoles[rpc],
            html`${inline(operation.summary)}`,
          ]),
        )}
      </section>
      ${ofTag.map((call) => callSection(document, call, url ?? "$INGEST_URL"))}`;
  });
  const [about = "", ...rules] = document.info.description.split("\n- ");
  const body = html`<h1>Administration API</h1>
    <p class="lead">${inline(about)}</p>
    <ul>
      ${rules.map((rule) => html`<li>${inline(rule)}</li>`)}
    </ul>
    ${
      url === undefined
        ? html`<p>
            This port does not serve it. The port for administration (<code>ADMIN_PORT</code>) does, with this page and
            <code>/openapi/admin.v1.yaml</code>. Here <code>$INGEST_URL</code> stands for its address.
          </p>`
        : html`<p>
              For client generators: <a href="/openapi/admin.v1.yaml">openapi/admin.v1.yaml</a> and
              <a href="/openapi/admin.v1.json">openapi/admin.v1.json</a>. Server reflection is on.
            </p>
            ${block(`${url}${root}`, "text", "Base URL")}`
    }
    ${groups}`;
  return page({
    title: "Administration API",
    path: "/docs/admin",
    contents: document.tags.map(({ name }) => ({ path: `#${name}`, name: titleOf(name) })),
    body,
  });
}

const root = "/api/v1/admin";

const titleOf = (tag: string) =>
  ({ whoami: "Who am I", organizations: "Organisations" })[tag] ?? `${tag[0]?.toUpperCase()}${tag.slice(1)}`;

function callSection(document: OpenApi, call: Call, url: string): Html {
  const { path, verb, rpc, method, operation } = call;
  const parameters = (operation.parameters ?? []).map((one) => resolved(document, one as Parameter));
  const content = operation.requestBody?.content["application/json"];
  const [answer] = Object.values(operation.responses["200"]?.content ?? {});
  const codes = Object.values(operation.responses).flatMap((one) => {
    const { content: types } = resolved(document, one);
    return Object.keys(types?.["application/json"]?.examples ?? {}) as ErrorCode[];
  });
  return html`<section class="endpoint" aria-labelledby="${rpc}">
    ${h2(rpc, html`<code>${method.name}</code>`)}
    <p class="route"><span class="method ${verb}">${verb.toUpperCase()}</span> <code>${path}</code></p>
    <div class="split">
      <div>
        <p>${inline(operation.description)}</p>
        ${parametersOf(document, "In the path", parameters, "path")}
        ${parametersOf(document, "Query parameters", parameters, "query")}
        ${
          content === undefined
            ? nothing
            : html`<h3>Body</h3>
                <p>${inline(operation.requestBody?.description ?? "")}</p>
                ${members(document, content.schema)}`
        }
        ${
          answer === undefined
            ? nothing
            : html`<details>
                <summary>Members of the answer</summary>
                ${members(document, answer.schema)}
              </details>`
        }
        <p>
          Errors:
          ${codes
            .filter((code) => code in errorTable)
            .map((code, i) => html`${i === 0 ? "" : ", "}<a href="/docs/errors/${code}"><code>${code}</code></a>`)}.
        </p>
      </div>
      <div class="aside">
        ${samples([
          { label: "curl", language: "shell", text: curl(url, call) },
          { label: "buf curl", language: "shell", text: rpcSample(url, call) },
        ])}
      </div>
    </div>
  </section>`;
}

/** An example of each variable of paths. */
const exampleIds: Readonly<Record<string, string>> = {
  organizationId: "org_…",
  appId: "app_…",
  keyId: "key_…",
  workerId: "wrk_…",
  erasureId: "ers_…",
  requestId: "req_…",
  tokenId: "tok_…",
};

const exampleOf = ({ operation }: Call) =>
  operation.requestBody?.content["application/json"]?.example as Record<string, unknown> | undefined;

function curl(url: string, call: Call): string {
  const { verb, path, operation } = call;
  const example = exampleOf(call);
  const target = path.replaceAll(/\{(\w+)\}/g, (_, name: string) => exampleIds[name] ?? "…");
  const method = verb === "get" || (verb === "post" && example !== undefined) ? "" : ` -X ${verb.toUpperCase()}`;
  const isStream = "text/event-stream" in (operation.responses["200"]?.content ?? {});
  const parts = [`curl${isStream ? " -N" : ""}${method} "${url}${target}"`, '-H "Authorization: Bearer $INGEST_TOKEN"'];
  if (example !== undefined) {
    parts.push('-H "Content-Type: application/json"', `-d '${JSON.stringify(example, undefined, 2)}'`);
  }
  return parts.join(" \\\n  ");
}

/** The same call over RPC, with the schema's names. */
function rpcSample(url: string, call: Call): string {
  const input = call.method.input as DescMessage;
  const names = [...call.path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name as string);
  const variables = Object.fromEntries(
    names.map((name) => [input.fields.find(({ jsonName }) => jsonName === name)?.name, exampleIds[name]]),
  );
  const message = messageOf(input, exampleOf(call) ?? {}, variables, call.verb === "patch");
  return bufCurl(url, call.method.name, toJson(input, message));
}
