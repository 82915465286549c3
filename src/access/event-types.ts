/** Lists of event types, such as an app's whitelist: exact types, and prefixes followed by `*`. */

/** Whether a type is on the list. */
export function whitelist(allow: readonly string[]): (type: string) => boolean {
  const exact = new Set(allow.filter((entry) => !isPrefix(entry)));
  const prefixes = allow.filter(isPrefix).map(prefixOf);
  return (type) => exact.has(type) || prefixes.some((prefix) => type.startsWith(prefix));
}

/**
 * The first entry of a list that lies outside the whitelist: it has a type that no single entry of the whitelist
 * covers. Undefined if there is none.
 */
export function firstOutside(eventTypes: readonly string[], allow: readonly string[]): string | undefined {
  const isAllowed = whitelist(allow);
  const prefixes = allow.filter(isPrefix).map(prefixOf);
  return eventTypes.find((entry) =>
    isPrefix(entry) ? !prefixes.some((prefix) => entry.startsWith(prefix)) : !isAllowed(entry),
  );
}

const isPrefix = (entry: string) => entry.endsWith("*");
const prefixOf = (entry: string) => entry.slice(0, -1);
