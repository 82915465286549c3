import { type DescEnum, type DescField, type DescMessage, type DescService, ScalarType } from "@bufbuild/protobuf";
import { Ingest } from "../../gen/ingest/v1/ingest_pb.js";
import { Timeline } from "../../gen/ingest/v1/timeline_pb.js";
import { block } from "./code.ts";
import { h2, type Html, html, inline, nothing, table, type Value } from "./html.ts";
import { page } from "./layout.ts";
import { grpcurl } from "./reactions.ts";

const services: readonly DescService[] = [Ingest, Timeline];

/** Example request of each RPC, as protobuf JSON. */
const examples: Readonly<Record<string, string>> = {
  Events: `{"events": [{
    "eventType": "ticket.resolved",
    "category": "EVENT_CATEGORY_PROJECT_MANAGEMENT",
    "actor": {"externalId": "crm-user-42"},
    "duration": 240
  }]}`,
  Snapshots: `{
    "snapshotType": "tickets_open",
    "actor": {"externalId": "crm-user-42"},
    "metrics": {
      "open": {"number": 7},
      "first_response": {"measure": {"value": 42, "unit": "METRIC_UNIT_MINUTES"}}
    }
  }`,
  ListEvents: '{"pageSize": 10}',
  ListSnapshots: '{"pageSize": 10}',
  WatchEvents: "{}",
};

/** The RPCs and their messages, from the proto files and their comments. */
export function grpcPage(comments: ReadonlyMap<string, string>, publicUrl: string): string {
  const { protocol, host, port } = new URL(publicUrl);
  const address = port === "" ? `${host}:${protocol === "http:" ? 80 : 443}` : host;
  const about = (name: string): Html => html`${paragraphs(comments.get(name) ?? "")}`;
  const files = [...new Set(services.map(({ file }) => file))];
  const messages = files.flatMap((file) => file.messages);
  const enums = files.flatMap((file) => file.enums);
  const link = (type: DescMessage | DescEnum | DescService): Html =>
    type.file.proto.package === Ingest.file.proto.package
      ? html`<a href="#${type.name}"><code>${type.name}</code></a>`
      : html`<code>${type.typeName}</code>`;

  const typeOf = (field: DescField): Html => {
    switch (field.fieldKind) {
      case "scalar":
        return html`<code>${scalar(field.scalar)}</code>`;
      case "enum":
        return link(field.enum);
      case "message":
        return link(field.message);
      case "list": {
        const inner =
          field.listKind === "scalar" ? html`<code>${scalar(field.scalar)}</code>` : link(field.message ?? field.enum);
        return html`repeated ${inner}`;
      }
      case "map": {
        const inner =
          field.mapKind === "scalar" ? html`<code>${scalar(field.scalar)}</code>` : link(field.message ?? field.enum);
        return html`map of ${inner}`;
      }
    }
  };

  const fieldRow = (message: DescMessage, field: DescField): Value[] => [
    html`<code>${field.name}</code>`,
    html`${typeOf(field)}${field.oneof === undefined ? nothing : html` <span class="type">in ${field.oneof.name}</span>`}`,
    about(`${message.typeName}.${field.name}`),
  ];

  const rpcs = services.map(
    (service) =>
      html`<section>
        ${h2(service.name, html`<code>${service.typeName}</code>`)} ${about(service.typeName)}
        ${service.methods.map((method) => {
          const variable = service === Timeline ? "WEPEOPLE_READ_KEY" : "WEPEOPLE_API_KEY";
          const example = examples[method.name];
          const flags = [
            `-H "authorization: Bearer $${variable}"`,
            ...(example === undefined ? [] : [`-d '${example}'`]),
          ];
          const stream = method.methodKind === "server_streaming" ? "stream of " : "";
          return html`<h3 id="${method.name}">${method.name}</h3>
            <p>${link(method.input)} → ${stream}${link(method.output)}</p>
            ${about(`${service.typeName}.${method.name}`)}
            ${block(grpcurl(publicUrl, `${service.name}/${method.name}`, flags), "shell", "grpcurl")}`;
        })}
      </section>`,
  );

  const body = html`<h1>gRPC and Connect</h1>
    <p class="lead">One schema, <code>ingest.v1</code>, over gRPC, gRPC-Web and Connect, on the same port as REST.</p>
    ${block(address, "text", "Address")}
    ${table(
      ["you use", "how it works here"],
      [
        ["Authentication", html`Metadata <code>authorization: Bearer wp_live_…</code>, as over REST.`],
        ["Schema", html`Server reflection is on: <code>grpcurl</code> and <code>buf curl</code> need no files.`],
        [
          "Errors",
          html`The status carries <code>google.rpc.ErrorInfo</code>, whose <code>reason</code> is one of the
            <a href="/docs/errors">codes</a>, with <code>RequestInfo</code> and <code>Help</code>. Some errors also have
            <code>BadRequest</code>, <code>RetryInfo</code> or <code>QuotaFailure</code>.`,
        ],
        [
          "Retries",
          html`Send <code>idempotency-key</code> with Events and Snapshots, and wait as long as
            <code>RetryInfo</code> says: see <a href="/docs/retries">idempotency and retries</a>.`,
        ],
        ["Deadlines", html`A deadline that has passed ends the call with <code>DEADLINE_EXCEEDED</code>.`],
        ["Compression", html`<code>gzip</code>, in both directions.`],
        ["Health", html`<code>grpc.health.v1.Health</code>, for the whole server and for each service.`],
        [
          "Connect",
          html`<code>POST ${publicUrl}/ingest.v1.Ingest/Events</code> with JSON or protobuf. Ping and the two lists also
            take <code>GET</code>.`,
        ],
      ],
    )}
    ${rpcs} ${h2("messages", "Messages")}
    ${messages.map(
      (message) =>
        html`<section>
          <h3 id="${message.name}"><code>${message.name}</code></h3>
          ${about(message.typeName)}
          ${
            message.fields.length === 0
              ? nothing
              : table(
                  ["field", "type", "meaning"],
                  message.members.flatMap((member) =>
                    member.kind === "field"
                      ? [fieldRow(message, member)]
                      : [
                          [html`<code>${member.name}</code>`, "oneof", about(`${message.typeName}.${member.name}`)],
                          ...member.fields.map((field) => fieldRow(message, field)),
                        ],
                  ),
                )
          }
        </section>`,
    )}
    ${h2("enums", "Enums")}
    ${enums.map(
      (type) =>
        html`<section>
          <h3 id="${type.name}"><code>${type.name}</code></h3>
          ${about(type.typeName)}
          ${table(
            ["value", "number", "meaning"],
            type.values.map((value) => [
              html`<code>${value.name}</code>`,
              value.number,
              about(`${type.typeName}.${value.name}`),
            ]),
          )}
        </section>`,
    )}`;
  return page({
    title: "gRPC and Connect",
    path: "/docs/grpc",
    contents: [
      ...services.flatMap(({ methods }) => methods.map(({ name }) => ({ path: `#${name}`, name }))),
      { path: "#messages", name: "Messages" },
      { path: "#enums", name: "Enums" },
    ],
    body,
  });
}

const scalar = (type: ScalarType): string => (ScalarType[type] as string).toLowerCase();

/** Splits a comment into paragraphs and joins their lines. */
const paragraphs = (comment: string): Html[] =>
  comment
    .split(/\n\s*\n/)
    .map((text) =>
      text
        .trim()
        .split("\n")
        .map((line) => line.trim())
        .join(" "),
    )
    .filter((text) => text !== "")
    .map((text) => html`<p>${inline(text)}</p>`);
