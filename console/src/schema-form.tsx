import { type DescField, type DescMessage, ScalarType } from "@bufbuild/protobuf";
import { useId } from "react";
import { restNames } from "../../src/message-json.ts";
import { text } from "./text.ts";

const own = text.playground;

/** REST's JSON of a message, as the form has it. */
export type Json = { [name: string]: unknown };

interface FormProps {
  readonly desc: DescMessage;
  readonly value: Json;
  readonly onChange: (value: Json) => void;
  /** Suggestions for a text, by its path. */
  readonly suggestions?: Readonly<Record<string, readonly string[]>>;
  readonly path?: string;
}

/** A form made from the schema. Members without a value are left out of the JSON. */
export function SchemaForm({ desc, value, onChange, suggestions = {}, path = "" }: FormProps) {
  const set = (name: string, member: unknown) => {
    const { [name]: _, ...rest } = value;
    onChange(member === undefined || member === "" ? rest : { ...rest, [name]: member });
  };
  return (
    desc.fields
      // Lists of further ids are for few; the JSON takes them.
      .filter(({ fieldKind }) => fieldKind !== "list")
      .map((field) => (
        <Member
          key={field.jsonName}
          field={field}
          value={value[field.jsonName]}
          onChange={(member) => set(field.jsonName, member)}
          suggestions={suggestions}
          path={path === "" ? field.jsonName : `${path}.${field.jsonName}`}
        />
      ))
  );
}

interface MemberProps {
  readonly field: DescField;
  readonly value: unknown;
  readonly onChange: (value: unknown) => void;
  readonly suggestions: Readonly<Record<string, readonly string[]>>;
  readonly path: string;
}

function Member({ field, value, onChange, suggestions, path }: MemberProps) {
  const id = useId();
  if (field.fieldKind === "message" && !field.message.typeName.startsWith("google.")) {
    return (
      <fieldset>
        <legend>{field.jsonName}</legend>
        <SchemaForm
          desc={field.message}
          value={(value as Json | undefined) ?? {}}
          onChange={(member) => onChange(Object.keys(member).length === 0 ? undefined : member)}
          suggestions={suggestions}
          path={path}
        />
      </fieldset>
    );
  }
  const list = suggestions[path];
  return (
    <div className="field">
      <label htmlFor={id}>{field.jsonName}</label>
      {field.fieldKind === "enum" ? (
        <select id={id} value={String(value ?? "")} onChange={(event) => onChange(event.currentTarget.value)}>
          <option value="">{own.leftOut}</option>
          {restNames(field.enum).map((name) => (
            <option key={name} value={name}>
              {name}
            </option>
          ))}
        </select>
      ) : field.fieldKind === "map" || (field.fieldKind === "message" && field.message.typeName.endsWith(".Struct")) ? (
        <JsonInput id={id} value={value} onChange={onChange} />
      ) : field.fieldKind === "message" ? (
        <input
          id={id}
          value={String(value ?? "")}
          placeholder={new Date().toISOString()}
          spellCheck={false}
          onChange={(event) => onChange(event.currentTarget.value)}
        />
      ) : field.fieldKind === "scalar" && isNumber(field) ? (
        <input
          id={id}
          type="number"
          value={value === undefined ? "" : Number(value)}
          onChange={(event) =>
            onChange(event.currentTarget.value === "" ? undefined : Number(event.currentTarget.value))
          }
        />
      ) : (
        <>
          <input
            id={id}
            value={String(value ?? "")}
            list={list === undefined ? undefined : `${id}-list`}
            spellCheck={false}
            onChange={(event) => onChange(event.currentTarget.value)}
          />
          {list !== undefined && (
            <datalist id={`${id}-list`}>
              {list.map((one) => (
                <option key={one} value={one} />
              ))}
            </datalist>
          )}
        </>
      )}
    </div>
  );
}

const isNumber = ({ scalar }: DescField): boolean => scalar !== ScalarType.STRING && scalar !== ScalarType.BOOL;

interface JsonInputProps {
  readonly id: string;
  readonly value: unknown;
  readonly onChange: (value: unknown) => void;
}

/** JSON as text. It counts only while it can be read. */
function JsonInput({ id, value, onChange }: JsonInputProps) {
  return (
    <textarea
      id={id}
      className="short"
      defaultValue={value === undefined ? "" : JSON.stringify(value, undefined, 2)}
      placeholder='{"priority": "high"}'
      spellCheck={false}
      onChange={(event) => {
        const given = event.currentTarget.value.trim();
        try {
          onChange(given === "" ? undefined : JSON.parse(given));
          event.currentTarget.setCustomValidity("");
        } catch {
          event.currentTarget.setCustomValidity(own.noJson);
        }
      }}
    />
  );
}
