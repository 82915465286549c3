import { writeFileSync } from "node:fs";
import { openapiYaml } from "./document.ts";

/** `npm run generate` writes the committed document; a test compares the two. */
writeFileSync(new URL("../../openapi/v1.yaml", import.meta.url), openapiYaml());
