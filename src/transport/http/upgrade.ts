import type { IncomingMessage } from "node:http";
import type { Server as NetServer, Socket } from "node:net";
import { answerUnderWay, takeUpgrades } from "./node-internals.ts";

/**
 * Serves a request that asks for another protocol (h2c, WebSocket) as if it did not ask. Without a listener, Node answers
 * it and drops what follows in the same packet. So this listener takes the connection, and gives it back without the header.
 * @param serve gives the connection to the HTTP/1.1 server, as if it were new.
 */
export function ignoreUpgrades(server: NetServer, serve: (socket: Socket) => void): void {
  takeUpgrades(server, (request, socket, rest) => {
    // At once: a socket with bytes to read does not report its end, after which nothing can be put back.
    if (rest.length > 0) socket.unshift(rest);
    socket.unshift(headOf(request));
    // Node has removed its own listener.
    const drained = () => answerUnderWay(socket)?.emit("drain");
    socket.on("drain", drained);
    const giveBack = (): void => {
      const earlier = answerUnderWay(socket);
      if (earlier !== undefined) return void earlier.once("close", giveBack);
      socket.off("drain", drained);
      if (socket.writable) serve(socket);
    };
    giveBack();
  });
}

/** The request's head without `Upgrade`. It is not longer than before, so it stays within the limit. */
function headOf({ method, url, httpVersion, rawHeaders }: IncomingMessage): Buffer {
  const lines = [`${method} ${url} HTTP/${httpVersion}`];
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() !== "upgrade") lines.push(`${rawHeaders[i]}:${rawHeaders[i + 1]}`);
  }
  return Buffer.from(`${lines.join("\r\n")}\r\n\r\n`, "latin1");
}
