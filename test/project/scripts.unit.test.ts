import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import { expect, test } from "vitest";

const { scripts } = JSON.parse(readFileSync(resolve(import.meta.dirname, "../../package.json"), "utf8"));

test("`npm run dev` runs and watches the command of `npm start`", () => {
  expect(scripts.dev).toBe(scripts.start.replace("exec node ", "exec node --watch "));
});
