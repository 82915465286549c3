import { useReducer, useState, useSyncExternalStore } from "react";
import { whenSessionEnds, whileSessionLasts } from "./session.ts";

/**
 * A value of this place in the browser's history: Back finds it again. The browser may write it to disk, so it is
 * neither a secret nor about a person.
 */
export function useKept<T>(name: string, initial: T): readonly [T, (next: T) => void] {
  const [, redraw] = useReducer((times: number) => times + 1, 0);
  const keep = (next: T) => {
    history.replaceState({ ...history.state, [name]: next }, "");
    redraw();
  };
  const { [name]: value = initial } = (history.state ?? {}) as Readonly<Record<string, T>>;
  return [value, keep];
}

const remembered = new Map<string, unknown>();
const listeners = new Set<() => void>();
whenSessionEnds(() => remembered.clear());

const subscribe = (listener: () => void) => {
  listeners.add(listener);
  return () => void listeners.delete(listener);
};

/**
 * A value that outlives its screen in the page's memory, and ends with the session.
 * @param initial the same one at each call.
 */
export function useRemembered<T>(name: string, initial: T): readonly [T, (next: (last: T) => T) => void] {
  const [isMine] = useState(whileSessionLasts);
  const valueOf = () => (remembered.has(name) ? (remembered.get(name) as T) : initial);
  const value = useSyncExternalStore(subscribe, valueOf);
  const change = (next: (last: T) => T) => {
    // What comes late is not for the tab's next user.
    if (!isMine()) return;
    remembered.set(name, next(valueOf()));
    for (const listener of listeners) listener();
  };
  return [value, change];
}
