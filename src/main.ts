import { serveAndExit } from "./serve/serve.ts";

await serveAndExit(process.env);
