import type { DescMessage, Message } from "@bufbuild/protobuf";
import { isReflectList, isReflectMessage, reflect, type ReflectMessage } from "@bufbuild/protobuf/reflect";
import { Fault, type Issue } from "../../errors.ts";
import { invalidBody } from "../../ingest/validate.ts";
import { type Format, namesOf } from "./json-check.ts";

/**
 * Validation speaks REST's names. Says the same in those of the schema: fields in snake case to callers of the binary
 * format, in camel case to those of JSON, and the values of enums by their full names.
 */
export function spelledFor(fault: Fault, desc: DescMessage, message: Message, format: Format): Fault {
  const issues = fault.issues.map((issue) => spelledIssue(issue, desc, message, format));
  // Other faults than invalid_body have a message of their own.
  const text = fault.code === "invalid_body" ? invalidBody(issues).message : fault.message;
  return new Fault(fault.code, text, { issues, cause: fault.cause });
}

function spelledIssue(issue: Issue, desc: DescMessage, message: Message, format: Format): Issue {
  let node: ReflectMessage | undefined = reflect(desc, message);
  let path = "";
  let text = issue.message;
  let rest = issue.path;
  while (node !== undefined && rest !== "") {
    const [step, name, index] = /^(\w+)(?:\[(\d+)\])?(?:\.|$)/.exec(rest) ?? [];
    const field = node.fields.find(({ jsonName }) => jsonName === name);
    if (step === undefined || field === undefined) break;
    rest = rest.slice(step.length);
    if (format === "proto") text = inSnakeCase(text, node);
    path += `${path === "" ? "" : "."}${format === "proto" ? field.name : field.jsonName}`;
    if (index !== undefined) path += `[${index}]`;
    if (field.fieldKind === "enum" && rest === "") {
      const number = node.get(field);
      const given = field.enum.value[number]?.name ?? number;
      text = `must be one of ${namesOf(field.enum)}; it is ${node.isSet(field) ? given : "missing"}`;
    }
    // What is below a map or a Struct has names of the caller's own.
    const value: unknown = field.fieldKind === "map" ? undefined : node.get(field);
    const item: unknown = isReflectList(value) ? value.get(Number(index)) : value;
    node = isReflectMessage(item) && !item.desc.typeName.startsWith("google.protobuf.") ? item : undefined;
  }
  if (rest !== "") path += `${path === "" ? "" : "."}${rest}`;
  return { path, message: text };
}

/** The rule in a text, before what was given, with the names of the message's other fields. */
function inSnakeCase(text: string, { fields }: ReflectMessage): string {
  const [rule = "", ...given] = text.split("; it ");
  const spelled = rule.replace(
    /\b[a-z]+[A-Z]\w*/g,
    (word) => fields.find(({ jsonName }) => jsonName === word)?.name ?? word,
  );
  return [spelled, ...given].join("; it ");
}
