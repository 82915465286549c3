import { type DescField, type DescMessage, type Message, ScalarType } from "@bufbuild/protobuf";
import {
  isReflectList,
  isReflectMap,
  isReflectMessage,
  protoCamelCase,
  reflect,
  type ReflectMessage,
} from "@bufbuild/protobuf/reflect";
import { type FieldMask, FieldMaskSchema } from "@bufbuild/protobuf/wkt";
import { Fault, type Issue } from "../../errors.ts";
import { MetricSchema } from "../../gen/ingest/v1/ingest_pb.js";
import { invalidBody } from "../../ingest/validate.ts";
import { limits } from "../../limits.ts";
import { type Format, namesOf } from "./json-check.ts";

/**
 * Rewrites the issues of a fault, which use REST's names, to the names of the schema. Fields are in snake case for the
 * binary format and in camel case for JSON. Enum values have their full names.
 */
export function spelledFor(fault: Fault, desc: DescMessage, message: Message, format: Format): Fault {
  const issues = fault.issues.map((issue) => spelledIssue(issue, desc, message, format));
  // Other faults have a message of their own.
  const { issuesTotal, cause } = fault;
  const text = fault.code === "invalid_body" ? invalidBody(issues, { total: issuesTotal }).message : fault.message;
  return new Fault(fault.code, text, { issues, issuesTotal, cause });
}

function spelledIssue(issue: Issue, desc: DescMessage, message: Message, format: Format): Issue {
  let node: ReflectMessage | undefined = reflect(desc, message);
  let path = "";
  let text = issue.message;
  let rest = issue.path;
  while (node !== undefined && rest !== "") {
    const [step, name, index] = /^(\w+)(?:\[(\d+)\])?(?:\.|$)/.exec(rest) ?? [];
    let field = node.fields.find(({ jsonName }) => jsonName === name);
    if (field === undefined && step !== undefined) {
      // REST's JSON leaves out the level of the oneof's message.
      field = chosenOf(node);
      if (field?.fieldKind !== "message" || !field.message.fields.some(({ jsonName }) => jsonName === name)) break;
      path += `.${field.name}`;
      node = node.get(field) as ReflectMessage;
      continue;
    }
    if (step === undefined || field === undefined) break;
    rest = rest.slice(step.length);
    if (format === "proto") text = inSnakeCase(text, node);
    path += `${path === "" ? "" : "."}${format === "proto" ? field.name : field.jsonName}`;
    if (index !== undefined) path += `[${index}]`;
    const value: unknown = node.get(field);
    if (field.enum !== undefined && rest === "" && (field.fieldKind === "enum" || index !== undefined)) {
      const number = (isReflectList(value) ? value.get(Number(index)) : value) as number;
      const given = field.enum.value[number]?.name ?? number;
      text = `must be one of ${namesOf(field.enum)}; it is ${node.isSet(field) ? given : "missing"}`;
    }
    if (format === "proto" && isReflectMessage(value) && value.desc.typeName === FieldMaskSchema.typeName) {
      for (const one of (value.message as FieldMask).paths) text = text.replace(`'${protoCamelCase(one)}'`, `'${one}'`);
    }
    let item: unknown = isReflectList(value) ? value.get(Number(index)) : value;
    if (isReflectMap(value)) {
      // The caller chose the keys, which may contain dots.
      const key = [...value.keys()].map(String).find((one) => rest === one || rest.startsWith(`${one}.`));
      if (key === undefined) break;
      path += `.${key}`;
      rest = rest.slice(key.length + 1);
      item = value.get(key);
    }
    node = isReflectMessage(item) && !item.desc.typeName.startsWith("google.protobuf.") ? item : undefined;
  }
  // REST allows several forms, and RPC has a oneof.
  const [oneof] = rest === "" && node !== undefined ? node.oneofs : [];
  if (node !== undefined && oneof !== undefined && node.desc.typeName === MetricSchema.typeName) {
    const chosen = node.oneofCase(oneof);
    if (chosen === undefined) text = `must have one of ${oneof.fields.map(({ name }) => name).join(", ")}; it has none`;
    else {
      path += `.${chosen.name}`;
      const rule =
        chosen.scalar === ScalarType.DOUBLE
          ? "a finite number"
          : `a label of 1 to ${limits.labelCharactersMax} characters`;
      text = text.replace(/^.*?(?=; it is )/s, `must be ${rule}`);
    }
  }
  if (rest !== "") path += `${path === "" ? "" : "."}${rest}`;
  return { path, message: text };
}

/** The set field of a message's oneof. */
const chosenOf = (node: ReflectMessage): DescField | undefined =>
  node.oneofs.map((oneof) => node.oneofCase(oneof)).find((field) => field !== undefined);

/** Puts the names of the message's fields into snake case, but only in the rule, not in the given value. */
function inSnakeCase(text: string, { fields }: ReflectMessage): string {
  const [rule = "", ...given] = text.split("; it ");
  const spelled = rule.replace(
    /\b[a-z]+[A-Z]\w*/g,
    (word) => fields.find(({ jsonName }) => jsonName === word)?.name ?? word,
  );
  return [spelled, ...given].join("; it ");
}
