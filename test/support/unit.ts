import { subscribe } from "node:diagnostics_channel";

/** A unit test opens no socket and starts no process. Vitest counts these errors as failures of the run. */
const refuse = (what: string) => () => {
  throw new Error(`a unit test ${what}: take ".unit" out of its file's name`);
};

subscribe("net.client.socket", refuse("opens a connection"));
subscribe("tracing:net.server.listen:asyncStart", refuse("listens on a socket"));
subscribe("child_process", refuse("starts a process"));
