import { once } from "node:events";
import { connect } from "node:net";
import { expect, test } from "vitest";
import { startService } from "../support/service.ts";

test("callers that never close their connections delay the stop only until the end of the drain", async () => {
  const service = await startService({ env: { DRAIN_SECONDS: "0.5" } });
  // HTTP/2's preface with an empty SETTINGS frame; nothing; half a request.
  const beginnings = ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u0004\0\0\0\0\0", "", "GET / HTTP/1.1\r\n"];
  const sockets = await Promise.all(
    beginnings.map(async (text) => {
      const socket = connect({ port: service.app.port, host: "127.0.0.1", allowHalfOpen: true });
      socket.on("error", () => {}).resume();
      await once(socket, "connect");
      socket.write(text, "latin1");
      return socket;
    }),
  );
  await once(
    sockets[0]!.on("data", () => {}),
    "data",
  );
  await service.app.close();
  expect(sockets).toHaveLength(3);
  for (const socket of sockets) socket.destroy();
});
