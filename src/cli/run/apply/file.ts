import { isNode, LineCounter, type Node, parseDocument } from "yaml";
import { z } from "zod";
import { scopes } from "../../../access/scopes.ts";
import * as shapes from "../../../admin/shapes.ts";
import { ConfigError } from "../../../config.ts";
import { Reading, type Shape } from "../../../ingest/validate.ts";
import { escapeControls } from "../../../terminal.ts";
import { parseTimeOrDate } from "../../../time.ts";

/** The wanted state that `ingest apply` reads. A member that the file lacks stays as it is. */

/** The API's own rule for a value. */
const shaped = <T>(shape: Shape<T>) =>
  z.unknown().transform((value, context): T => {
    const reading = new Reading({});
    const valid = shape.read(value, reading);
    for (const { path, message } of reading.notes) {
      if (message !== undefined) context.addIssue({ code: "custom", path: [...path], message });
    }
    return valid;
  });

const time = z.string().transform((text, context): Date => {
  const date = parseTimeOrDate(text);
  if (date instanceof Date) return date;
  context.addIssue({ code: "custom", message: date });
  return z.NEVER;
});

/** Refuses two entries with the same text in a member. */
const distinct =
  <Entry>(member: string, textOf: (entry: Entry) => string | undefined) =>
  (entries: readonly Entry[], context: z.RefinementCtx): void => {
    const seen = new Set<string>();
    for (const [i, entry] of entries.entries()) {
      const text = textOf(entry);
      if (text === undefined) continue;
      if (seen.has(text)) context.addIssue({ code: "custom", path: [i, member], message: `'${text}' comes twice` });
      seen.add(text);
    }
  };

const keySchema = z.strictObject({
  name: shaped(shapes.name),
  scopes: z.array(z.enum(scopes)).min(1).optional(),
  eventTypes: shaped(shapes.types).optional(),
  cidrs: shaped(shapes.cidrs).optional(),
  expiresAt: time.nullable().optional(),
  test: z.boolean().optional(),
});

const appSchema = z.strictObject({
  slug: shaped(shapes.slug),
  name: shaped(shapes.name).optional(),
  allow: shaped(shapes.types).optional(),
  keys: z
    .array(keySchema)
    .superRefine(distinct("name", ({ name }) => name))
    .optional(),
});

const organizationSchema = z
  .strictObject({
    id: z.string().regex(/^org_/, "must be the id of an organisation, which begins with org_").optional(),
    name: shaped(shapes.name).optional(),
    api: z.boolean().optional(),
    quotaEventsPerMonth: shaped(shapes.quota).optional(),
    keyRequestsPerSecond: shaped(shapes.rate).optional(),
    organizationRequestsPerSecond: shaped(shapes.rate).optional(),
    retentionDays: shaped(shapes.retentionDays).nullable().optional(),
    apps: z
      .array(appSchema)
      .superRefine(distinct("slug", ({ slug }) => slug))
      .optional(),
  })
  .refine(({ id, name }) => (id ?? name) !== undefined, "must have a name or an id");

const fileSchema = z.strictObject({
  organizations: z
    .array(organizationSchema)
    .superRefine(distinct("name", ({ name }) => name))
    .superRefine(distinct("id", ({ id }) => id)),
});

export type WantedKey = z.infer<typeof keySchema>;
export type WantedApp = z.infer<typeof appSchema>;
export type WantedOrganization = z.infer<typeof organizationSchema>;

/** @throws ConfigError with the line of each problem. */
export function parseFile(path: string, text: string): readonly WantedOrganization[] {
  const lines = new LineCounter();
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false });
  const problems: { line: number; message: string }[] = [];
  const note = (offset: number, message: string) => problems.push({ line: lines.linePos(offset).line, message });
  for (const { pos, message } of [...document.errors, ...document.warnings]) note(pos[0], message);
  if (problems.length === 0) {
    const result = fileSchema.safeParse(document.toJS({ maxAliasCount: 100 }));
    if (result.success) return result.data.organizations;
    for (const issue of result.error.issues) {
      const unknown = issue.code === "unrecognized_keys" ? issue.keys : [undefined];
      for (const member of unknown) {
        const at = member === undefined ? issue.path : [...issue.path, member];
        const message = member === undefined ? issue.message : "is not a member that this file can have";
        note(offsetOf(document.contents, at), `${pathOf(at)}: ${message}`);
      }
    }
  }
  const listed = problems
    .toSorted((a, b) => a.line - b.line)
    .map(({ line, message }) => escapeControls(`${path}:${line}: ${message}`));
  throw new ConfigError(listed.join("\n"));
}

const pathOf = (path: readonly PropertyKey[]): string =>
  path.map((part, i) => (typeof part === "number" ? `[${part}]` : `${i === 0 ? "" : "."}${String(part)}`)).join("") ||
  "the file";

/** Where the member stands, or else the nearest one around it. */
function offsetOf(root: Node | null, path: readonly PropertyKey[]): number {
  let node: unknown = root;
  let offset = 0;
  for (const part of [...path, undefined]) {
    if (isNode(node) && node.range) [offset] = node.range;
    if (part === undefined) return offset;
    const { items = [] } = (node ?? {}) as { items?: readonly unknown[] };
    if (typeof part === "number") node = items[part];
    else {
      const pair = items.find((item) => keyOf(item) === part) as { key: Node; value: unknown } | undefined;
      if (pair?.key.range) [offset] = pair.key.range;
      node = pair === undefined ? undefined : isNode(pair.value) ? { ...pair.value, range: pair.key.range } : undefined;
    }
  }
  return offset;
}

const keyOf = (item: unknown): unknown => (item as { key?: { value?: unknown } }).key?.value;
