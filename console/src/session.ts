import { useSyncExternalStore } from "react";

/**
 * The credential of this browser tab. It lives in the tab's session storage, which no other tab reads and which the
 * browser empties with the tab. It never enters an address.
 */
const storageName = "ingest-console-token";

type Listener = () => void;
const listeners = new Set<Listener>();
let why: string | undefined;

function tell(): void {
  for (const listener of listeners) listener();
}

export const session = {
  token: (): string | undefined => sessionStorage.getItem(storageName) ?? undefined,
  begin(token: string): void {
    sessionStorage.setItem(storageName, token);
    why = undefined;
    tell();
  },
  /** @param reason the code of the error that ended it; absent if the user signed out. */
  end(reason?: string): void {
    if (session.token() === undefined) return;
    sessionStorage.removeItem(storageName);
    why = reason;
    tell();
  },
  /** Why the last session ended, if the user did not end it. */
  endedBy: (): string | undefined => why,
};

const subscribe = (listener: Listener) => {
  listeners.add(listener);
  return () => void listeners.delete(listener);
};

export const useToken = (): string | undefined => useSyncExternalStore(subscribe, session.token);
