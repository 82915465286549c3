import { jsonText } from "./format.ts";

/** A call of the ingest API in the ways in which callers make it. */
interface Call {
  /** The address of the ingest API. */
  readonly url: string;
  /** The key itself; absent: the snippets read it from the environment. */
  readonly key?: string;
}

export interface SendCall extends Call {
  readonly path: "events" | "snapshots";
  /** REST's JSON of the body. */
  readonly body: unknown;
  /** The JSON that protobuf reads. */
  readonly rpcBody: unknown;
}

/** The names of the ways, in the order in which people see them. */
export type Calls = Readonly<Record<"curl" | "grpcurl" | "buf curl" | "TypeScript", string>>;

const keyName = "WEPEOPLE_API_KEY";
const quoted = (json: unknown) => `'${jsonText(json, 0).replaceAll("'", "'\\''")}'`;

export function sendCalls({ url, key, path, body, rpcBody }: SendCall): Calls {
  const rpc = path === "events" ? "Events" : "Snapshots";
  return {
    curl: [
      `curl ${url}/api/v1/ingest/${path} \\`,
      `  ${bearer(key)} -H "Content-Type: application/json" \\`,
      `  -d ${quoted(body)}`,
    ].join("\n"),
    ...rpcCalls({ url, key, service: "Ingest", rpc, rpcBody, file: "ingest" }),
  };
}

/** Reads the newest rows of the timeline. */
export function readCalls({ url, key }: Call): Calls {
  return {
    curl: [`curl "${url}/api/v1/timeline/events?pageSize=10" \\`, `  ${bearer(key)}`].join("\n"),
    ...rpcCalls({ url, key, service: "Timeline", rpc: "ListEvents", rpcBody: { pageSize: 10 }, file: "timeline" }),
  };
}

interface RpcCall {
  readonly url: string;
  readonly key: string | undefined;
  readonly service: string;
  readonly rpc: string;
  readonly rpcBody: unknown;
  /** The name of the schema's file. */
  readonly file: string;
}

function rpcCalls({ url, key, service, rpc, rpcBody, file }: RpcCall): Omit<Calls, "curl"> {
  const { protocol, hostname, port } = new URL(url);
  const isPlain = protocol === "http:";
  const host = `${hostname}:${port || (isPlain ? 80 : 443)}`;
  const schema = `${rpc}RequestSchema`;
  const method = rpc.charAt(0).toLowerCase() + rpc.slice(1);
  return {
    grpcurl: [
      `grpcurl${isPlain ? " -plaintext" : ""} ${bearer(key)} \\`,
      `  -d ${quoted(rpcBody)} \\`,
      `  ${host} ingest.v1.${service}/${rpc}`,
    ].join("\n"),
    "buf curl": [
      `buf curl --protocol grpc${isPlain ? " --http2-prior-knowledge" : ""} ${bearer(key)} \\`,
      `  -d ${quoted(rpcBody)} \\`,
      `  ${url}/ingest.v1.${service}/${rpc}`,
    ].join("\n"),
    TypeScript: [
      "// npm install @bufbuild/protobuf @connectrpc/connect @connectrpc/connect-node",
      "// Generate gen/ts from the folder proto/ of Ingest, as its guide for clients says.",
      'import { fromJson } from "@bufbuild/protobuf";',
      'import { createClient } from "@connectrpc/connect";',
      'import { createGrpcTransport } from "@connectrpc/connect-node";',
      `import { ${schema}, ${service} } from "./gen/ts/ingest/v1/${file}_pb.js";`,
      "",
      `const client = createClient(${service}, createGrpcTransport({ baseUrl: ${JSON.stringify(url)} }));`,
      `const request = fromJson(${schema}, ${jsonText(rpcBody)});`,
      "const headers = {",
      `  authorization: \`Bearer ${key ?? `\${process.env.${keyName}}`}\`,`,
      // A call that stores something is safe to retry with the same key.
      ...(service === "Ingest" ? ['  "idempotency-key": crypto.randomUUID(),'] : []),
      "};",
      `console.log(await client.${method}(request, { headers }));`,
    ].join("\n"),
  };
}

const bearer = (key = `$${keyName}`) => `-H "Authorization: Bearer ${key}"`;
