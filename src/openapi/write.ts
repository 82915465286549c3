import { writeFileSync } from "node:fs";
import { openapiJson, openapiYaml } from "./document.ts";

/** `npm run generate` writes the committed documents; a test compares. */
const write = (name: string, text: string) => writeFileSync(new URL(`../../openapi/${name}`, import.meta.url), text);
write("v1.yaml", openapiYaml());
write("v1.json", openapiJson());
