import { EventEmitter } from "node:events";
import { expect, test } from "vitest";
import { missingInternals, takeOver } from "../../../src/transport/http/node-internals.ts";

test("this Node behaves as the server relies on", () => {
  expect(missingInternals()).toEqual([]);
});

test("a listener is taken over only if it is the only one", () => {
  const server = new EventEmitter();
  expect(takeOver(server, "connection")).toBeUndefined();
  const own = () => {};
  server.on("connection", own);
  expect(takeOver(server, "connection")).toBe(own);
  expect(server.listeners("connection")).toEqual([]);
  server.on("connection", own).on("connection", () => {});
  expect(takeOver(server, "connection")).toBeUndefined();
  expect(server.listeners("connection")).toHaveLength(2);
});
