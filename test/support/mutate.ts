import fc from "fast-check";

/** A change of one place of a JSON value. */
export interface Mutation {
  /** The place, counted over all places, modulo their number. */
  readonly place: number;
  readonly how: "replace" | "remove" | "repeat" | "rename";
  readonly value: unknown;
  readonly name: string;
}

/** Strange strings, and names with a meaning in JavaScript, JSON, BSON, MongoDB or HTTP. */
export const strangeText = fc.oneof(
  fc.string({ unit: "binary", maxLength: 12 }),
  fc.string({ unit: "grapheme", maxLength: 12 }),
  fc.constantFrom(
    "",
    "\0",
    "a\0b",
    "\ud800",
    "__proto__",
    "constructor",
    "toJSON",
    "$where",
    "$set",
    "a.b",
    "_bsontype",
    "_id",
    "wrk_0",
    "x".repeat(300),
    "9".repeat(400),
    "2026-02-30T00:00:00Z",
    "0000-01-01T00:00:00Z",
    "+275760-09-13T00:00:00.001Z",
  ),
);

/** Any JSON, the strange kinds first. */
export const strangeJson: fc.Arbitrary<unknown> = fc.oneof(
  { maxDepth: 4, depthSize: "small" },
  fc.constantFrom(null, true, false, 0, -0, -1, 1e308, 5e-324, 2 ** 53, 0.1, 86_401, [], {}, [[]], { events: [] }),
  fc.double({ noNaN: true, noDefaultInfinity: true }),
  strangeText,
  fc.array(fc.json().map((text) => JSON.parse(text))),
  fc.dictionary(
    strangeText,
    fc.json().map((text) => JSON.parse(text)),
    { maxKeys: 4 },
  ),
  fc.integer({ min: 1, max: 200 }).map(nested),
);

/** An object with this many levels. */
function nested(levels: number): unknown {
  let value: unknown = 1;
  for (let i = 0; i < levels; i++) value = { a: value };
  return value;
}

export const mutation: fc.Arbitrary<Mutation> = fc.record({
  place: fc.nat(),
  how: fc.constantFrom("replace", "replace", "remove", "repeat", "rename"),
  value: strangeJson,
  name: strangeText,
});

type Container = Record<string, unknown> | unknown[];

/** A copy of a JSON value with the mutations applied, one after another. */
export function mutated(value: unknown, mutations: readonly Mutation[]): unknown {
  const root = { value: structuredClone(value) };
  for (const { place, how, value, name } of mutations) {
    const places = placesOf(root);
    const [holder, key] = places[place % places.length] as [Container, string];
    const members = holder as Record<string, unknown>;
    if (how === "replace" || holder === root) define(members, key, structuredClone(value));
    else if (how === "repeat" && Array.isArray(holder)) holder.push(structuredClone(members[key]));
    else {
      const old = members[key];
      if (Array.isArray(holder)) holder.splice(Number(key), 1);
      else delete members[key];
      if (how === "rename" && !Array.isArray(holder)) define(members, name, old);
    }
  }
  return root.value;
}

function define(holder: Record<string, unknown>, key: string, value: unknown): void {
  Object.defineProperty(holder, key, { value, enumerable: true, configurable: true, writable: true });
}

function placesOf(root: Container): [Container, string][] {
  const places: [Container, string][] = [];
  const open: Container[] = [root];
  for (let holder = open.pop(); holder !== undefined; holder = open.pop()) {
    for (const key of Object.keys(holder)) {
      places.push([holder, key]);
      const value = (holder as Record<string, unknown>)[key];
      if (typeof value === "object" && value !== null) open.push(value as Container);
    }
  }
  return places;
}

/** A change of bytes at one position. */
export const byteMutation = fc.record({
  place: fc.nat(),
  how: fc.constantFrom("set", "insert", "remove", "cut"),
  byte: fc.integer({ min: 0, max: 255 }),
});

export function mutatedBytes(
  bytes: Uint8Array,
  mutations: readonly { readonly place: number; readonly how: string; readonly byte: number }[],
): Buffer {
  let result = [...bytes];
  for (const { place, how, byte } of mutations) {
    const at = result.length === 0 ? 0 : place % result.length;
    if (how === "set") result[at] = byte;
    else if (how === "insert") result.splice(at, 0, byte);
    else if (how === "remove") result.splice(at, 1);
    else result = result.slice(0, at);
  }
  return Buffer.from(result);
}
