import { hash } from "node:crypto";
import type { DescMessage, Message, MessageShape } from "@bufbuild/protobuf";
import { protoCamelCase, reflect } from "@bufbuild/protobuf/reflect";
import type { FieldMask } from "@bufbuild/protobuf/wkt";
import { Fault } from "../errors.ts";
import { invalidMember, shown } from "../ingest/validate.ts";
import { type Kind, kinds } from "./call.ts";

/** Members of an update that are not changes. */
type Fixed = "$typeName" | "$unknown" | "updateMask" | "etag" | `${string}Id`;

/** The changed members. A member that is present and undefined is cleared. */
export type Changes<Request> = { [Name in Exclude<keyof Request, Fixed>]?: Request[Name] | undefined };

type Update = Message & { readonly updateMask?: FieldMask | undefined; readonly etag?: string | undefined };

/**
 * The members that an update changes: those of its mask, or else those that are present.
 * @throws Fault invalid_body for an empty mask and for a path that is no member to change.
 */
export function changesOf<Desc extends DescMessage>(
  desc: Desc,
  request: MessageShape<Desc>,
): Changes<MessageShape<Desc>> {
  const { updateMask } = request as unknown as Update;
  const node = reflect(desc, request);
  // The first field names the object.
  const fields = desc.fields.slice(1).filter(({ name }) => name !== "update_mask" && name !== "etag");
  const allowed = fields.map(({ jsonName }) => jsonName).join(", ");
  const chosen = updateMask?.paths.map((path) => {
    const field = fields.find(({ name }) => name === path);
    if (field === undefined) {
      throw invalidMember(
        "updateMask",
        `must have members to change: ${allowed}; one is ${shown(protoCamelCase(path))}`,
      );
    }
    return field;
  });
  const changed = chosen ?? fields.filter((field) => node.isSet(field));
  if (changed.length === 0) {
    const [path, what] = updateMask === undefined ? ["body", "has"] : ["updateMask", "names"];
    throw invalidMember(path, `${what} nothing to change; allowed: ${allowed}`);
  }
  const message = request as Readonly<Record<string, unknown>>;
  return Object.fromEntries(changed.map(({ localName }) => [localName, message[localName]])) as never;
}

/** Characters of an etag for each member. */
const digits = 4;

/** An object's etag: a short hash of each member, in this order, so that a stale one tells what changed. */
export const etagOf = (members: Readonly<Record<string, unknown>>): string =>
  Object.values(members)
    .map((value) => hash("sha256", JSON.stringify(value) ?? "", "base64url").slice(0, digits))
    .join("");

/** @throws Fault conflict if the caller's etag is stale; it names the members that changed. */
export function checkEtag(
  etag: string | undefined,
  members: Readonly<Record<string, unknown>>,
  kind: Kind,
  id: string,
): void {
  if (etag === undefined) return;
  const current = etagOf(members);
  if (etag === current) return;
  const { name } = kinds[kind];
  if (!/^[\w-]+$/.test(etag) || etag.length !== current.length) {
    throw invalidMember("etag", `must be an etag of the ${name}, as reading it answers; it is ${shown(etag)}`);
  }
  const changed = Object.keys(members).filter((_, i) => {
    const [from, to] = [i * digits, (i + 1) * digits];
    return etag.slice(from, to) !== current.slice(from, to);
  });
  throw new Fault("conflict", `The ${name} '${id}' has changed since you read it: ${changed.join(", ")}.`);
}
