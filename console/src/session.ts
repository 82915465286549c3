import { useSyncExternalStore } from "react";

/** How a token of an OIDC issuer is renewed. */
export interface Renewal {
  readonly issuer: string;
  readonly clientId: string;
  readonly usesIdToken: boolean;
  readonly refreshToken: string;
  /** In milliseconds since 1970, by this machine's clock. */
  readonly dueMs: number;
}

export interface Credential {
  readonly token: string;
  /** Absent for access tokens of Ingest, and if the issuer gave no refresh token. */
  readonly renewal?: Renewal;
}

/**
 * The credential of this browser tab. It lives in the tab's session storage, which no other tab reads and which the
 * browser empties with the tab. It never enters an address.
 */
const storageName = "ingest-console-credential";

type Listener = () => void;
const listeners = new Set<Listener>();
let why: string | undefined;
let ends = 0;

function tell(): void {
  for (const listener of listeners) listener();
}

export const session = {
  credential(): Credential | undefined {
    const stored = sessionStorage.getItem(storageName);
    return stored === null ? undefined : (JSON.parse(stored) as Credential);
  },
  token: (): string | undefined => session.credential()?.token,
  begin(credential: Credential): void {
    sessionStorage.setItem(storageName, JSON.stringify(credential));
    why = undefined;
    tell();
  },
  /** @param reason the code of the error that ended it; absent if the user signed out. */
  end(reason?: string): void {
    if (session.token() === undefined) return;
    sessionStorage.removeItem(storageName);
    why = reason;
    ends++;
    tell();
  },
  /** Why the last session ended, if the user did not end it. */
  endedBy: (): string | undefined => why,
};

/** Tells later whether the session has not ended since. What a late answer brings is not for the tab's next user. */
export function whileSessionLasts(): () => boolean {
  const before = ends;
  return () => ends === before;
}

/** Whether the token is so old that the next call renews it. */
export function isRenewalDue(): boolean {
  const { renewal } = session.credential() ?? {};
  return renewal !== undefined && Date.now() >= renewal.dueMs;
}

const subscribe = (listener: Listener) => {
  listeners.add(listener);
  return () => void listeners.delete(listener);
};

/** Calls after each end of a session: the next user of the tab must find nothing of the last one. */
export const whenSessionEnds = (forget: () => void): void =>
  void subscribe(() => {
    if (session.token() === undefined) forget();
  });

export const useToken = (): string | undefined => useSyncExternalStore(subscribe, session.token);
