import { writeFileSync } from "node:fs";
import { adminDocument } from "./admin.ts";
import { jsonOf, openapiDocument, yamlOf } from "./document.ts";

/** `npm run generate` writes the committed documents; a test compares. */
const documents = { v1: openapiDocument(), "admin.v1": await adminDocument() };
for (const [name, document] of Object.entries(documents)) {
  writeFileSync(new URL(`../../openapi/${name}.yaml`, import.meta.url), yamlOf(document));
  writeFileSync(new URL(`../../openapi/${name}.json`, import.meta.url), jsonOf(document));
}
