import { readFileSync } from "node:fs";
import { Ajv2020 } from "ajv/dist/2020.js";
import formats from "ajv-formats";
import { expect } from "vitest";
import { parse } from "yaml";
import { answerHeaderNames } from "../../src/headers.ts";

/** A committed OpenAPI document, and checks of answers against it. */
export class Described {
  readonly name: string;
  readonly yaml: string;
  readonly document: any;
  readonly ajv = new Ajv2020({ strict: false, allErrors: true });

  /** @param name of the file, such as `v1` */
  constructor(name: string) {
    this.name = name;
    this.yaml = readFileSync(new URL(`../../openapi/${name}.yaml`, import.meta.url), "utf8");
    this.document = parse(this.yaml);
    formats.default(this.ajv);
    this.ajv.addSchema(this.document, name);
  }

  /** Every call, with its place in the document. */
  get operations(): { readonly path: string; readonly verb: string; readonly operation: any }[] {
    return Object.entries<object>(this.document.paths).flatMap(([path, item]) =>
      Object.entries<any>(item).map(([verb, operation]) => ({ path, verb, operation })),
    );
  }

  resolved<T>(value: T & { $ref?: string }): T {
    return value.$ref === undefined
      ? value
      : value.$ref
          .slice("#/".length)
          .split("/")
          .reduce((at, part) => at[part], this.document);
  }

  /** Fails if the value does not fit the schema at this place. */
  expectValid(value: unknown, ...place: string[]): void {
    const pointer = place.map((part) => encodeURIComponent(part.replaceAll("~", "~0").replaceAll("/", "~1"))).join("/");
    this.ajv.validate({ $ref: `${this.name}#/${pointer}` }, value);
    expect(this.ajv.errors, `${place.join(" ")}: ${JSON.stringify(value)}`).toBeNull();
  }

  /** Checks that the document describes the answer's status, headers and body. */
  expectAnswer(path: string, verb: string, status: number, headers: Headers, body: unknown): void {
    const found = this.document.paths[path]?.[verb]?.responses[status];
    expect(found, `${verb} ${path} answers ${status}: ${JSON.stringify(body)}`).toBeDefined();
    const described = this.resolved<any>(found);
    const known: Record<string, any> = Object.fromEntries(
      Object.entries<any>(described.headers).map(([name, header]) => [name.toLowerCase(), this.resolved(header)]),
    );
    for (const name of answerHeaderNames) {
      const value = headers.get(name);
      if (value === null) expect(known[name]?.required, `${status} lacks ${name}`).not.toBe(true);
      else {
        expect(known[name], `${verb} ${path} ${status} has ${name}`).toBeDefined();
        const { schema } = known[name];
        expect(this.ajv.validate(schema, schema.type === "integer" ? Number(value) : value), `${name}: ${value}`).toBe(
          true,
        );
      }
    }
    const code = (body as any)?.error?.code;
    const examples = described.content["application/json"]?.examples;
    if (code !== undefined) expect(Object.keys(examples), `${verb} ${path}`).toContain(code);
    const place = found.$ref?.slice("#/".length).split("/") ?? ["paths", path, verb, "responses", String(status)];
    this.expectValid(body, ...place, "content", "application/json", "schema");
  }
}
