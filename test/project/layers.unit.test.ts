import { globSync, readFileSync } from "node:fs";
import { dirname, join, normalize, resolve } from "node:path";
import { describe, expect, test } from "vitest";

const source = resolve(import.meta.dirname, "../../src");

/** The layers, lowest first, each with the layers that it may import, apart from itself. */
const layers: Readonly<Record<string, readonly string[]>> = {
  base: [],
  store: ["base"],
  access: ["base", "store"],
  admin: ["base", "store", "access", "ingest", "timeline"],
  ingest: ["base", "store", "access"],
  timeline: ["base", "store", "access", "ingest"],
  transport: ["base", "store", "access", "admin", "ingest", "timeline"],
  observe: ["base", "store", "access", "ingest", "timeline", "transport"],
  send: ["base", "ingest"],
  openapi: ["base", "ingest", "timeline", "admin"],
  app: ["base", "store", "access", "admin", "ingest", "timeline", "transport", "observe"],
  embedded: ["base", "store"],
  serve: ["base", "store", "embedded", "access", "admin", "observe", "app"],
  command: ["base", "store", "embedded", "access", "admin", "ingest", "transport", "observe", "app", "serve", "send"],
};

const importPattern = /(?:\bfrom|\bimport)\s*\(?\s*"([^"]+)"/g;

/** A folder is a layer, and so are these files. Generated code belongs to the base. */
const layerOf = (path: string): string => {
  const [first = "", ...rest] = path.split("/");
  if (first === "gen") return "base";
  if (rest.length > 0) return first === "cli" ? "command" : first;
  return ({ "app.ts": "app", "main.ts": "command", "cli.ts": "command" } as Record<string, string>)[first] ?? "base";
};

/** Packages that only some layers may use. Any layer may import their types. */
const packages: readonly (readonly [pattern: RegExp, layers: readonly string[]])[] = [
  [/^mongodb/, ["store", "embedded", "admin", "app", "serve", "command"]],
  [/^@connectrpc\/connect/, ["base", "transport", "observe", "command"]],
  [/^node:https?2?$/, ["transport"]],
  [/^commander$/, ["command"]],
  [/^yaml$/, ["openapi", "command"]],
  [/^jose$/, ["access"]],
];

/** The imports of every file, including types and dynamic imports: files by their path in src, packages by name. */
const imports = new Map(
  globSync("**/*.{ts,js}", { cwd: source, exclude: ["**/*.d.ts"] }).map((path) => {
    const text = readFileSync(join(source, path), "utf8");
    const named = [...text.matchAll(importPattern)].map(([, name]) => name as string);
    return [path, named.map((name) => (name.startsWith(".") ? normalize(join(dirname(path), name)) : name))] as const;
  }),
);
/** The packages that a file loads at run time. */
const packagesOf = (path: string) => {
  const text = readFileSync(join(source, path), "utf8").replace(/^(?:import|export) type [^;]*;/gm, "");
  return [...text.matchAll(importPattern)].map(([, name]) => name as string).filter((name) => !name.startsWith("."));
};
const files = [...imports.keys()];
/** The imports that load with the file, at once. */
const staticImportsOf = (path: string) => {
  const text = readFileSync(join(source, path), "utf8");
  const named = [...text.matchAll(/^(?:import|export)(?! type)(?: [^;"]* from)? "([^"]+)"/gm)].map(
    ([, name]) => name as string,
  );
  return named.map((name) => (name.startsWith(".") ? normalize(join(dirname(path), name)) : name));
};

describe("the layers of src", () => {
  test("every file belongs to a layer, and every import leads to a file", () => {
    expect(files.length).toBeGreaterThan(50);
    expect([...new Set(files.map(layerOf))].sort()).toEqual(Object.keys(layers).sort());
    const lost = [...imports].flatMap(([path, named]) =>
      named.filter((name) => /\.[jt]s$/.test(name) && !imports.has(name)).map((name) => `${path} → ${name}`),
    );
    expect(lost).toEqual([]);
  });

  test("a layer imports only itself and the layers below it", () => {
    const upward = [...imports].flatMap(([path, named]) => {
      const layer = layerOf(path);
      const allowed = [layer, ...(layers[layer] as readonly string[])];
      return named
        .filter((name) => imports.has(name) && !allowed.includes(layerOf(name)))
        .map((name) => `${path} (${layer}) → ${name} (${layerOf(name)})`);
    });
    expect(upward).toEqual([]);
  });

  test("no file imports itself, not even indirectly", () => {
    const done = new Set<string>();
    const cycles: string[] = [];
    const visit = (path: string, way: readonly string[]): void => {
      if (way.includes(path)) return void cycles.push([...way.slice(way.indexOf(path)), path].join(" → "));
      if (done.has(path)) return;
      for (const name of imports.get(path) ?? []) if (imports.has(name)) visit(name, [...way, path]);
      done.add(path);
    };
    for (const path of files) visit(path, []);
    expect(cycles).toEqual([]);
  });

  test("only the layers for it use the database driver, HTTP, RPC and the command line", () => {
    const leaks = files.flatMap((path) =>
      packagesOf(path)
        .filter((name) => packages.some(([pattern, allowed]) => pattern.test(name) && !allowed.includes(layerOf(path))))
        .map((name) => `${path} (${layerOf(path)}) → ${name}`),
    );
    expect(leaks).toEqual([]);
  });

  test("the command line loads no further package before it knows the command", () => {
    const loaded = new Set<string>();
    const visit = (name: string): void => {
      if (loaded.has(name)) return;
      loaded.add(name);
      if (imports.has(name)) for (const next of staticImportsOf(name)) visit(next);
    };
    visit("cli.ts");
    const further = [...loaded].filter(
      (name) =>
        !imports.has(name) && !/^(node:.*|@bufbuild\/protobuf(\/.*)?|@connectrpc\/connect|commander|zod)$/.test(name),
    );
    expect(further).toEqual([]);
  });

  test("only terminal.ts writes to the terminal, so that no text of a caller acts on it", () => {
    const writing = /\bconsole\.\w+\(|\bstd(out|err)\.write\(/;
    // Programs for readers of the documentation.
    const writers = files.filter(
      (path) => layerOf(path) !== "transport" && writing.test(readFileSync(join(source, path), "utf8")),
    );
    expect(writers).toEqual(["terminal.ts"]);
  });
});
