import { useSyncExternalStore } from "react";

const everyMs = 30_000;
const listeners = new Set<() => void>();
let timer: ReturnType<typeof setInterval> | undefined;

const subscribe = (listener: () => void) => {
  timer ??= setInterval(() => listeners.forEach((tell) => tell()), everyMs);
  listeners.add(listener);
  return () => {
    listeners.delete(listener);
    if (listeners.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
};

/** Draws a component again from time to time: what it says in relation to now goes stale. */
export const useTick = (): void => void useSyncExternalStore(subscribe, () => Math.floor(Date.now() / everyMs));
