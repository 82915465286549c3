import type { Sample } from "./code.ts";

/** A call to show in several languages. */
export interface Call {
  readonly method: string;
  /** Absolute. */
  readonly url: string;
  /** The environment variable that holds the key. */
  readonly keyVariable: string;
  /** As JSON; undefined for a call without a body. */
  readonly body?: unknown;
  /** Whether the answer is an endless stream. */
  readonly isStream?: boolean;
}

const json = (value: unknown) => JSON.stringify(value, undefined, 2);
const indented = (text: string, by: string) => text.replaceAll("\n", `\n${by}`);

/** The call as complete programs that need only the language's standard library. */
export const snippets = (call: Call): Sample[] => [
  { label: "curl", language: "shell", text: curl(call) },
  { label: "JavaScript", language: "js", text: javascript(call) },
  { label: "Python", language: "python", text: python(call) },
  { label: "Go", language: "go", text: go(call) },
];

function curl({ url, keyVariable, body, isStream }: Call): string {
  const headers = [`-H "Authorization: Bearer $${keyVariable}"`];
  if (body !== undefined) {
    headers.push(
      '-H "Content-Type: application/json"',
      '-H "Idempotency-Key: $(openssl rand -hex 16)"',
      `-d '${json(body).replaceAll("'", "'\\''")}'`,
    );
  }
  return [`curl${isStream ? " -N" : ""} "${url}"`, ...headers].join(" \\\n  ");
}

function javascript({ method, url, keyVariable, body, isStream }: Call): string {
  const authorization = `Authorization: \`Bearer \${process.env.${keyVariable}}\`,`;
  const options =
    body === undefined
      ? `  headers: { ${authorization.slice(0, -1)} },`
      : `  method: "${method}",
  headers: {
    ${authorization}
    "Content-Type": "application/json",
    "Idempotency-Key": crypto.randomUUID(),
  },
  body: JSON.stringify(${indented(json(body), "  ")}),`;
  const read = isStream
    ? `const decoder = new TextDecoder();
for await (const chunk of response.body) {
  process.stdout.write(decoder.decode(chunk, { stream: true }));
}`
    : "console.log(response.status, await response.json());";
  return `const response = await fetch("${url}", {\n${options}\n});\n${read}`;
}

/** Writes a JSON value as a Python literal. */
const pythonLiteral = (value: unknown): string =>
  json(value).replace(/"(?:\\.|[^"\\])*"?|\b(true|false|null)\b/g, (text, word?: string) =>
    word === undefined ? text : ({ true: "True", false: "False", null: "None" }[word] ?? text),
  );

function python({ method, url, keyVariable, body, isStream }: Call): string {
  const imports = ["json", "os", "urllib.request", "uuid"].filter(
    (name) => (name !== "uuid" || body !== undefined) && (name !== "json" || !isStream),
  );
  const authorization = `"Authorization": f"Bearer {os.environ['${keyVariable}']}",`;
  const options =
    body === undefined
      ? `    headers={${authorization.slice(0, -1)}},`
      : `    method="${method}",
    headers={
        ${authorization}
        "Content-Type": "application/json",
        "Idempotency-Key": str(uuid.uuid4()),
    },
    data=json.dumps(${indented(pythonLiteral(body), "    ")}).encode(),`;
  const read = isStream
    ? `    for line in response:\n        print(line.decode(), end="", flush=True)`
    : "    print(response.status, json.load(response))";
  return `import ${imports.join(", ")}

request = urllib.request.Request(
    "${url}",
${options}
)
with urllib.request.urlopen(request) as response:
${read}`;
}

function go({ method, url, keyVariable, body }: Call): string {
  const imports = ["io", "log", "net/http", "os", ...(body === undefined ? [] : ["crypto/rand", "strings"])].sort();
  const reader = body === undefined ? "nil" : `strings.NewReader(\`${json(body)}\`)`;
  const headers =
    body === undefined
      ? ""
      : `	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", rand.Text())
`;
  return `package main

import (
${imports.map((name) => `	"${name}"`).join("\n")}
)

func main() {
	request, err := http.NewRequest("${method}", "${url}", ${indented(reader, "	")})
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("${keyVariable}"))
${headers}	response, err := http.DefaultClient.Do(request)
	if err != nil {
		log.Fatal(err)
	}
	defer response.Body.Close()
	io.Copy(os.Stdout, response.Body)
}`;
}
