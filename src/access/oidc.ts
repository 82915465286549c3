import { decodeJwt, errors, type JWTPayload, jwtVerify } from "jose";
import { Fault } from "../errors.ts";
import { organizationIdPattern } from "../ids.ts";
import type { Role } from "../store/access-tokens.ts";
import type { Identity } from "./identity.ts";
import { IssuerKeys, type IssuerKeysOptions } from "./issuer-keys.ts";

export interface OidcOptions extends IssuerKeysOptions {
  readonly audience: string;
  /** The claim with the role, also a path such as `realm_access.roles`. */
  readonly roleClaim: string;
  /** In milliseconds since 1970. */
  readonly now: () => number;
}

/** Asymmetric algorithms only: with a shared secret, the public key of the issuer would pass as that secret. */
const algorithms = [
  ...["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
  ...["ES256", "ES384", "ES512", "EdDSA", "Ed25519"],
];

/** Allowed difference between the clocks of the issuer and the database. */
export const clockToleranceSeconds = 30;

const tokenCharactersMax = 16_384;
const nameCharactersMax = 200;
const subjectCharactersMax = 255;
/** The last time that every protocol can write. */
const latestMs = Date.parse("9999-12-31T23:59:59.999Z");

const expectedRoles = "operator, viewer, manager:org_… or viewer:org_…";

/** Turns bearer tokens of an OIDC issuer into identities. A token cannot be revoked: it ends when it expires. */
export class Oidc {
  readonly #options: OidcOptions;
  readonly #keys: IssuerKeys;

  constructor(options: OidcOptions) {
    this.#options = options;
    this.#keys = new IssuerKeys(options);
  }

  /**
   * @throws Fault invalid_key, key_expired; forbidden_scope for a token without a role; unavailable if the issuer does
   * not answer.
   */
  async find(token: string): Promise<Identity> {
    const claims = await this.#verify(token);
    const { exp = 0, sub } = claims;
    // jose checks only that the claim is present.
    if (typeof sub !== "string" || sub === "" || sub.length > subjectCharactersMax || !sub.isWellFormed()) {
      throw invalid(`its claim 'sub' must be a text of 1 to ${subjectCharactersMax} characters`);
    }
    return { kind: "oidc", id: sub, name: nameOf(claims) ?? sub, ...this.#grantOf(claims), expiresAtMs: timeMs(exp) };
  }

  /** @throws Fault key_expired. */
  checkExpiry({ expiresAtMs }: Identity): void {
    if (expiresAtMs + clockToleranceSeconds * 1000 <= this.#options.now()) throw expired(expiresAtMs);
  }

  async #verify(token: string): Promise<JWTPayload> {
    const { issuer, audience, now } = this.#options;
    if (token.length > tokenCharactersMax) {
      throw invalid(`it has ${token.length} characters; at most ${tokenCharactersMax} are allowed`);
    }
    try {
      // Before the signature, so that a token of another issuer never makes this one fetch keys.
      if (decodeJwt(token).iss !== issuer) throw invalid(`it must be of the issuer '${issuer}'`);
      const { payload } = await jwtVerify(token, (header, jws) => this.#keys.find(header, jws), {
        ...{ issuer, audience, algorithms, clockTolerance: clockToleranceSeconds },
        requiredClaims: ["exp", "sub"],
        currentDate: new Date(now()),
      });
      return payload;
    } catch (error) {
      throw this.#faultOf(error);
    }
  }

  #faultOf(error: unknown): unknown {
    if (error instanceof errors.JWTExpired) return expired(timeMs(error.payload.exp ?? 0));
    if (error instanceof errors.JWTClaimValidationFailed) return invalid(this.#problemOfClaim(error));
    if (error instanceof errors.JWKSNoMatchingKey) return invalid("no key of its issuer has signed it");
    if (error instanceof errors.JWKSMultipleMatchingKeys) return invalid("it does not name its key by 'kid'");
    if (error instanceof errors.JWSSignatureVerificationFailed) return invalid("its signature is wrong");
    if (error instanceof errors.JOSEAlgNotAllowed) {
      return invalid(`its algorithm ('alg') must be one of ${algorithms.join(", ")}`);
    }
    const isMalformed = error instanceof errors.JWTInvalid || error instanceof errors.JWSInvalid;
    return isMalformed || error instanceof errors.JOSENotSupported ? invalid("it is malformed") : error;
  }

  #problemOfClaim({ claim, reason, payload }: errors.JWTClaimValidationFailed): string {
    if (reason === "missing") return `it lacks the claim '${claim}'`;
    if (claim === "aud") return `its audience must be '${this.#options.audience}'`;
    if (claim === "nbf" && reason === "check_failed") {
      return `it is not valid before ${new Date(timeMs(payload.nbf ?? 0)).toISOString()}`;
    }
    return `its claim '${claim}' is not valid`;
  }

  /** The role that the claim gives: of several, the one that includes all others. */
  #grantOf(claims: JWTPayload): Grant {
    const { roleClaim } = this.#options;
    const value = claimAt(claims, roleClaim);
    const values: readonly unknown[] = Array.isArray(value) ? value : [value];
    const grants = values.flatMap((one) => (typeof one === "string" ? (grantFrom(one) ?? []) : []));
    if (grants.length === 0) {
      const problem = value === undefined ? "lacks the claim" : "has no role in the claim";
      throw new Fault("forbidden_scope", `The OIDC token ${problem} '${roleClaim}'; it must hold ${expectedRoles}.`);
    }
    const widest = grants.find((one) => grants.every((other) => includes(one, other)));
    if (widest !== undefined) return widest;
    const given = grants.slice(0, 5).map(({ role, organizationId: id }) => (id === undefined ? role : `${role}:${id}`));
    throw new Fault(
      "forbidden_scope",
      `The OIDC token has several roles in the claim '${roleClaim}' (${given.join(", ")}), and none includes the others; give its owner one of them.`,
    );
  }
}

interface Grant {
  readonly role: Role;
  readonly organizationId: string | undefined;
}

/** Undefined if the value is no role of Ingest. */
function grantFrom(value: string): Grant | undefined {
  if (value === "operator" || value === "viewer") return { role: value, organizationId: undefined };
  const [, role, organizationId = ""] = /^(manager|viewer):(.+)$/.exec(value) ?? [];
  return organizationIdPattern.test(organizationId) ? { role: role as Role, organizationId } : undefined;
}

/** Whether who has `one` may do all that `other` allows. */
function includes(one: Grant, other: Grant): boolean {
  if (one.role === "operator") return true;
  if (one.organizationId !== undefined && one.organizationId !== other.organizationId) return false;
  return other.role === "viewer" || other.role === one.role;
}

/**
 * The value of a claim by its name. The name may have dots itself (`https://example.org/roles`), or lead into objects
 * (`realm_access.roles`).
 */
function claimAt(claims: unknown, name: string): unknown {
  if (typeof claims !== "object" || claims === null) return undefined;
  const own = (key: string): unknown => (Object.hasOwn(claims, key) ? claims[key as never] : undefined);
  const whole = own(name);
  if (whole !== undefined) return whole;
  for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) {
    const value = claimAt(own(name.slice(0, dot)), name.slice(dot + 1));
    if (value !== undefined) return value;
  }
  return undefined;
}

function nameOf({ name, preferred_username: username, email }: JWTPayload): string | undefined {
  const texts = [name, username, email].filter((one) => typeof one === "string");
  return texts
    .find((one) => one.trim() !== "")
    ?.slice(0, nameCharactersMax)
    .toWellFormed();
}

/** Seconds of a claim as milliseconds that a date can show. */
const timeMs = (seconds: number) => Math.min(latestMs, Math.max(0, seconds * 1000));

const invalid = (problem: string) => new Fault("invalid_key", `The OIDC token is not valid: ${problem}.`);
const expired = (atMs: number) =>
  new Fault("key_expired", `The OIDC token expired at ${new Date(atMs).toISOString()}.`);
