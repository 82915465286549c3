import { writeFileSync } from "node:fs";
import { parse } from "yaml";
import { openapiYaml } from "./document.ts";

/** `npm run generate` writes the committed documents; a test compares. */
const yaml = openapiYaml();
const write = (name: string, text: string) => writeFileSync(new URL(`../../openapi/${name}`, import.meta.url), text);
write("v1.yaml", yaml);
write("v1.json", `${JSON.stringify(parse(yaml), undefined, 1)}\n`);
