import { readFile } from "node:fs/promises";

/** The parts of the OpenAPI document that the pages read. */
export interface OpenApi {
  readonly info: { readonly title: string; readonly version: string; readonly description: string };
  readonly tags: readonly { readonly name: string; readonly description: string }[];
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly components: Readonly<Record<string, Readonly<Record<string, unknown>>>>;
}

export interface Operation {
  readonly operationId: string;
  readonly summary: string;
  readonly description: string;
  readonly tags: readonly string[];
  readonly parameters?: readonly (Parameter | Reference)[];
  readonly requestBody?: { readonly description?: string; readonly content: Content };
  readonly responses: Readonly<Record<string, Response>>;
}

export interface Parameter {
  readonly name: string;
  readonly in: "header" | "query" | "path";
  readonly required?: boolean;
  readonly description?: string;
  readonly schema: Schema;
}

export interface Response {
  readonly description: string;
  readonly content?: Content;
}

export type Content = Readonly<
  Record<
    string,
    { readonly schema: Schema; readonly example?: unknown; readonly examples?: Readonly<Record<string, unknown>> }
  >
>;

interface Reference {
  readonly $ref?: string;
}

/** The part of JSON Schema that the document uses. */
export interface Schema extends Reference {
  readonly type?: string | readonly string[];
  readonly description?: string;
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly required?: readonly string[];
  readonly additionalProperties?: boolean | Schema;
  readonly items?: Schema;
  readonly anyOf?: readonly Schema[];
  readonly oneOf?: readonly Schema[];
  readonly allOf?: readonly Schema[];
  readonly enum?: readonly unknown[];
  readonly const?: unknown;
  readonly default?: unknown;
  readonly format?: string;
  readonly pattern?: string;
  readonly minimum?: number;
  readonly maximum?: number;
  readonly minLength?: number;
  readonly maxLength?: number;
  readonly minItems?: number;
  readonly maxItems?: number;
  readonly minProperties?: number;
}

const file = (name: string) => new URL(`../../../openapi/${name}`, import.meta.url);

/** The documents; `npm run generate` writes each as JSON and as YAML. */
export type DocumentName = "v1" | "admin.v1";

export const readOpenApi = async (name: DocumentName): Promise<OpenApi> =>
  JSON.parse(await readFile(file(`${name}.json`), "utf8")) as OpenApi;

/**
 * Reads a document and puts addresses into it, because client generators take them from there.
 * @param url of the service that the document describes
 * @param publicUrl of the pages
 */
export async function servedOpenApi(
  name: DocumentName,
  format: "yaml" | "json",
  url: string,
  publicUrl: string,
): Promise<string> {
  const text = await readFile(file(`${name}.${format}`), "utf8");
  const server = format === "yaml" ? /^( {2}- url: )"?\/"?$/m : /("url": )"\/"/;
  if (!server.test(text)) throw new Error(`openapi/${name}.${format} names no server '/'`);
  return text
    .replace(server, (_, before: string) => `${before}${JSON.stringify(url)}`)
    .replaceAll("](/docs", `](${publicUrl}/docs`);
}

/** Follows a reference within the document. Other members of the value win. */
export function resolved<T extends object>(document: OpenApi, value: T): T {
  const { $ref, ...beside } = value as T & Reference;
  if ($ref === undefined) return value;
  const target = $ref
    .slice("#/".length)
    .split("/")
    .reduce<any>((at, part) => at[part], document);
  return { ...resolved(document, target), ...beside } as T;
}

/** The name of the component that a reference points to. */
export const nameOf = ({ $ref }: Reference): string | undefined => $ref?.split("/").at(-1);
