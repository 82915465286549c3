import { buffer } from "node:stream/consumers";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { ConnectError } from "@connectrpc/connect";
import { createAdapter } from "../../src/transport/http/adapter.ts";
import { startServer } from "../../src/transport/http/server.ts";
import { message, registry } from "./schema.ts";
import { conformanceRpcs, registerStreams } from "./service.ts";

/**
 * The server under test, as connectconformance starts it. It reads its settings from standard input, and writes its
 * address to standard output. It runs the suite's service on the adapter and the listener of Ingest.
 */
const input = await buffer(process.stdin);
const request: any = fromBinary(message("ServerCompatRequest"), input.subarray(4));

let count = 0;
const adapter = createAdapter({
  routes: [],
  rpcs: conformanceRpcs,
  services: registerStreams,
  publicUrl: "http://localhost",
  newRequestId: () => `req_${++count}`,
  now: Date.now,
  onError: (error) => console.error(error),
  // The suite expects errors without details.
  errorOf: (fault) => new ConnectError(fault.message, fault.connectCode),
  jsonOptions: { registry },
  ...(request.messageReceiveLimit > 0 ? { messageBytesMax: request.messageReceiveLimit } : {}),
});
const text = (bytes: Uint8Array) => new TextDecoder().decode(bytes);
const tls = request.useTls ? { cert: text(request.serverCreds.cert), key: text(request.serverCreds.key) } : undefined;
const { port } = await startServer(() => adapter, {
  host: "127.0.0.1",
  port: 0,
  ...(tls === undefined ? {} : { tls }),
});
process.once("SIGTERM", () => process.exit());

const response = toBinary(
  message("ServerCompatResponse"),
  create(message("ServerCompatResponse"), {
    host: "127.0.0.1",
    port,
    ...(request.useTls ? { pemCert: request.serverCreds.cert } : {}),
  }),
);
const size = Buffer.alloc(4);
size.writeUInt32BE(response.length);
process.stdout.write(Buffer.concat([size, response]));
