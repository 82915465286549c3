import type { Role } from "../store/access-tokens.ts";

/** Who calls the administration API. */
export interface Identity {
  /** How the caller proved it: by an access token, by an OIDC token, or by access to the database. */
  readonly kind: "token" | "oidc" | "cli";
  /** Of an access token its id (`tok_` and a ULID), of an OIDC token the subject. */
  readonly id: string;
  /** For people; need not be unique. */
  readonly name: string;
  readonly role: Role;
  /** The only organisation that exists for the caller; undefined for the whole installation. */
  readonly organizationId: string | undefined;
  /** When its credential expires, in milliseconds since 1970; Infinity for never. */
  readonly expiresAtMs: number;
}
