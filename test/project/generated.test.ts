import { execFileSync } from "node:child_process";
import { globSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { delimiter, join, resolve } from "node:path";
import { expect, test } from "vitest";

const root = resolve(import.meta.dirname, "../..");

const filesOf = (directory: string) =>
  Object.fromEntries(
    globSync("**/*.{js,d.ts}", { cwd: directory })
      .sort()
      .map((path) => [path, readFileSync(join(directory, path), "utf8")]),
  );

test("src/gen matches the protos (`npm run generate`)", () => {
  const directory = mkdtempSync(join(tmpdir(), "ingest-gen-"));
  try {
    const bin = join(root, "node_modules/.bin");
    execFileSync(join(bin, "buf"), ["generate", "--output", directory], {
      cwd: root,
      env: { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` },
    });
    const made = filesOf(join(directory, "src/gen"));
    expect(Object.keys(made)).toContain("ingest/v1/ingest_pb.js");
    expect(filesOf(join(root, "src/gen"))).toEqual(made);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});

test("src/gen/ingest.binpb has the schema's comments (`npm run generate`)", () => {
  const made = execFileSync(
    join(root, "node_modules/.bin/buf"),
    ["build", "proto", "--path", "proto/ingest", "--exclude-imports", "-o", "-"],
    { cwd: root },
  );
  expect(readFileSync(join(root, "src/gen/ingest.binpb")).equals(made)).toBe(true);
});
