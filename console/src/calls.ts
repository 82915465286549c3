/** The same call in the ways in which callers make it. */
export interface CallParts {
  readonly url: string;
  /** "events" or "snapshots". */
  readonly path: "events" | "snapshots";
  /** REST's JSON of the body. */
  readonly body: unknown;
  /** The JSON that protobuf reads. */
  readonly rpcBody: unknown;
  readonly isDryRun: boolean;
}

const keyVariable = "$WEPEOPLE_API_KEY";
const quoted = (json: unknown) => `'${JSON.stringify(json).replaceAll("'", "'\\''")}'`;

export function callsOf({ url, path, body, rpcBody, isDryRun }: CallParts): Readonly<Record<string, string>> {
  const rpc = path === "events" ? "Events" : "Snapshots";
  const { protocol, hostname, port } = new URL(url);
  const isPlain = protocol === "http:";
  const host = `${hostname}:${port || (isPlain ? 80 : 443)}`;
  const auth = `-H "Authorization: Bearer ${keyVariable}"`;
  const dry = isDryRun ? ' -H "X-Dry-Run: true"' : "";
  return {
    curl: `curl ${url}/api/v1/ingest/${path} \\\n  ${auth} -H "Content-Type: application/json"${dry} \\\n  -d ${quoted(body)}`,
    grpcurl: `grpcurl${isPlain ? " -plaintext" : ""} ${auth}${dry} \\\n  -d ${quoted(rpcBody)} \\\n  ${host} ingest.v1.Ingest/${rpc}`,
    "buf curl": `buf curl ${auth}${dry} \\\n  -d ${quoted(rpcBody)} \\\n  ${url}/ingest.v1.Ingest/${rpc}${isPlain ? " --http2-prior-knowledge" : ""} --protocol grpc`,
    TypeScript: [
      `const response = await fetch("${url}/api/v1/ingest/${path}", {`,
      `  method: "POST",`,
      `  headers: {`,
      "    authorization: `Bearer ${process.env.WEPEOPLE_API_KEY}`,",
      `    "content-type": "application/json",`,
      `    "idempotency-key": crypto.randomUUID(),${isDryRun ? '\n    "x-dry-run": "true",' : ""}`,
      `  },`,
      `  body: JSON.stringify(${JSON.stringify(body, undefined, 2).replaceAll("\n", "\n  ")}),`,
      `});`,
      `console.log(response.status, await response.json());`,
    ].join("\n"),
  };
}
