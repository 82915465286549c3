import { refuseArguments } from "./serve/preflight.ts";
import { serveAndExit } from "./serve/serve.ts";

refuseArguments(process.argv.slice(2));
await serveAndExit(process.env);
