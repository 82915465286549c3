import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "vitest";

const { scripts } = JSON.parse(readFileSync(resolve(import.meta.dirname, "../../package.json"), "utf8"));

test("`npm run dev` runs what `npm start` runs, and watches it", () => {
  expect(scripts.dev).toBe(scripts.start.replace("exec node ", "exec node --watch "));
});
