import { create } from "@bufbuild/protobuf";
import { timestampFromDate } from "@bufbuild/protobuf/wkt";
import fc from "fast-check";
import { describe, expect, test, vi } from "vitest";
import { output } from "../../src/cli/output.ts";
import {
  AppSchema,
  ArrivalSchema,
  OrganizationSchema,
  RecordedRequestSchema,
  WorkerSchema,
} from "../../src/gen/ingest/admin/v1/admin_pb.js";
import * as views from "../../src/cli/views.ts";
import { type Column, cut, recordLines, tableOf, textWidth } from "../../src/cli/table.ts";
import { lineOf } from "../../src/cli/tail.ts";
import { note, say } from "../../src/terminal.ts";

interface Row {
  readonly id: string;
  readonly name: string;
  readonly createdAt: Date;
}

const columns: readonly Column<Row>[] = [
  { name: "id", of: ({ id }) => id },
  { name: "name", of: ({ name }) => name, cutTo: 8 },
  { name: "created", of: ({ createdAt }) => createdAt, optional: true },
];
const createdAt = new Date("2026-04-19T12:05:06.789Z");
const createdAtMessage = timestampFromDate(createdAt);
const rows = [
  { id: "org_1", name: "Acme", createdAt },
  { id: "org_2", name: "Industries of the North", createdAt },
];
const table = (width: number) => tableOf(rows, columns, width);

describe("a table", () => {
  test("shows everything if there is room, with times to the second", () => {
    expect(table(Number.POSITIVE_INFINITY)).toEqual({
      lines: [
        "id     name                     created",
        "org_1  Acme                     2026-04-19T12:05:06Z",
        "org_2  Industries of the North  2026-04-19T12:05:06Z",
      ],
      leftOut: [],
    });
  });

  test("cuts texts first, then leaves out and names optional columns, and never cuts ids", () => {
    expect(table(40)).toEqual({
      lines: [
        "id     name         created",
        "org_1  Acme         2026-04-19T12:05:06Z",
        "org_2  Industries…  2026-04-19T12:05:06Z",
      ],
      leftOut: [],
    });
    expect(table(20)).toEqual({
      lines: ["id     name", "org_1  Acme", "org_2  Industries o…"],
      leftOut: ["created"],
    });
  });

  test("has no line wider than the terminal, at any width", () => {
    const odd = [...rows, { id: "org_3", name: "営業部 👩‍💻 ｶﾅ e\u0301", createdAt }];
    for (let width = 1; width <= 60; width++) {
      for (const line of tableOf(odd, columns, width).lines) expect(textWidth(line), line).toBeLessThanOrEqual(width);
    }
  });

  test("aligns wide characters, and never cuts through one", () => {
    const wide = tableOf([{ id: "a", name: "営業部", createdAt }, ...rows], columns, 200).lines;
    expect(wide[1]).toBe(`a      営業部${" ".repeat(19)}2026-04-19T12:05:06Z`);
    expect(["営業部", "👩‍💻x", "ｶﾅ", "e\u0301"].map(textWidth)).toEqual([6, 3, 2, 1]);
    expect(cut("営業部", 4)).toBe("営…");
  });
});

test("a record shows everything: a long value continues on the next line", () => {
  const values = [
    ["id", "app_1"],
    ["may send", ["ticket.*", "deploy.shipped", "build.finished"]],
    ["none", null],
  ] as const;
  expect(recordLines(values, 36)).toEqual([
    "id        app_1",
    "may send  ticket.* deploy.shipped",
    "          build.finished",
    "none      -",
  ]);
});

describe("a line of `ingest tail`", () => {
  const arrival = (message: string) =>
    create(ArrivalSchema, {
      requestId: "req_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
      receivedAt: createdAtMessage,
      appId: "app_01HP3K5V4J3M9NVT8XZKQ9YQ2E",
      kind: { case: "rejected", value: { index: 3, code: "forbidden_event_type", message } },
    });

  test.each([
    ["a text for the clipboard (OSC 52)", "\u001b]52;c;ZXZpbA==\u0007", "\\u001b]52;c;ZXZpbA==\\u0007"],
    ["a control sequence in one character", "\u009b31m", "\\u009b31m"],
    ["a bidirectional mark", "\u202eevil", "\\u202eevil"],
    ["a line break that forges a row", "x\n2026-04-19T12:05:06Z  event", "x\\u000a2026-04-19T12:05:06Z  event"],
  ])("escapes %s", (_, message, shown) => {
    expect(lineOf(arrival(message))).toBe(
      `2026-04-19T12:05:06Z  rejected  req_01HP3K5V4J3M9NVT8XZKQ9YQ2E  app_01HP3K5V4J3M9NVT8XZKQ9YQ2E  forbidden_event_type  events[3]: ${shown}`,
    );
  });

  test("fits the terminal: it drops the app first, then the end of the text", () => {
    expect(lineOf(arrival("no such type"), undefined, 100)).toBe(
      "2026-04-19T12:05:06Z  rejected  req_01HP3K5V4J3M9NVT8XZKQ9YQ2E  forbidden_event_type  events[3]: no…",
    );
  });
});

/** What `work` writes to both streams. */
function written(work: () => void): string {
  let all = "";
  const streams = [process.stdout, process.stderr].map((stream) =>
    vi.spyOn(stream, "write").mockImplementation((chunk) => (all += String(chunk)) !== ""),
  );
  try {
    work();
  } finally {
    for (const stream of streams) stream.mockRestore();
  }
  return all;
}

const printers: Readonly<Record<string, (text: string) => void>> = {
  workers: (text) => views.printWorkers([workerOf(text)]),
  worker: (text) => views.printWorker(workerOf(text)),
  organisation: (text) => views.printOrganization(organizationOf(text)),
  organisations: (text) => views.printOrganizations([organizationOf(text)]),
  apps: (text) => views.printApps([appOf(text)]),
  request: (text) => views.printRequest(requestOf(text)),
  arrival: (text) => say(lineOf(arrivalOf(text))),
  JSON: (text) => output({ [text]: [text] }, { json: true }, () => {}),
};
const workerOf = (text: string) =>
  create(WorkerSchema, {
    ...{ id: "wrk_1", organizationId: "org_1", displayName: text, email: text, createdAt: createdAtMessage },
    links: [{ connection: `custom:${text}`, externalId: text }],
    cards: [{ snapshotType: text, metrics: { [text]: text, n: { value: 1, label: text } } }],
  });
const organizationOf = (name: string) => create(OrganizationSchema, { id: "org_1", name, createdAt: createdAtMessage });
const appOf = (text: string) =>
  create(AppSchema, { id: "app_1", slug: text, name: text, allow: [text], createdAt: createdAtMessage });
const arrivalOf = (message: string) =>
  create(ArrivalSchema, { requestId: "req_1", kind: { case: "rejected", value: { code: "x", message } } });
const requestOf = (text: string) =>
  create(RecordedRequestSchema, {
    ...{ requestId: "req_1", code: text, reason: text, connectCode: text, traceId: text, rpc: text },
    rejections: [{ code: text, message: text }],
    replays: [{ receivedAt: createdAtMessage, protocol: text }],
  });

const acting = /[\p{Cc}\u061C\u200E\u200F\u2028-\u202E\u2066-\u2069]/u;
const hostileText = fc
  .array(
    fc.oneof(fc.constantFrom(..."\u001b\u009b\n\r\u0085\u0007\u007f\u202e\u2028\u2066"), fc.string({ maxLength: 3 })),
  )
  .map((parts) => `x${parts.join("")}`);

test.each(Object.entries(printers))("no text in the view of %s acts on a terminal or forges a line", (_what, print) => {
  const linesOf = (text: string) => written(() => print(text)).split("\n");
  const linesMax = linesOf("x").length;
  fc.assert(
    fc.property(hostileText, (text) => {
      const lines = linesOf(text);
      expect(lines).toHaveLength(linesMax);
      for (const line of lines) expect(line).not.toMatch(acting);
    }),
  );
});

test("no output of a command controls the terminal", () => {
  fc.assert(
    fc.property(hostileText, (text) => {
      const all = written(() => {
        say(text);
        say(text, true);
        note(text);
      });
      expect(all.replaceAll("\n", "")).not.toMatch(acting);
    }),
  );
});
