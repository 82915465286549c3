import { type Credential, isRenewalDue, type Renewal, session } from "./session.ts";
import type { Settings } from "./settings.ts";
import { text } from "./text.ts";

type Oidc = NonNullable<Settings["oidc"]>;
type Client = Pick<Oidc, "issuer" | "clientId" | "usesIdToken">;

/** What a sign-in must remember while the user is with the issuer. */
interface Pending {
  readonly state: string;
  readonly verifier: string;
  readonly nonce: string;
  /** The screen that the user wanted: the issuer sends the user back without it. */
  readonly hash: string;
}

const pendingName = "ingest-console-sign-in";
const answerWithinMs = 10_000;

/** The console's own address, to which the issuer sends the user back. */
const redirectUri = () => new URL("./", document.baseURI).href;

/** Loaded only where somebody signs in at an issuer. */
const library = () => import("oauth4webapi");

async function discover(issuer: string) {
  const oauth = await library();
  const url = new URL(issuer);
  const options = () => ({
    // The service takes an issuer on plain HTTP only on its own machine.
    [oauth.allowInsecureRequests]: url.protocol === "http:",
    signal: AbortSignal.timeout(answerWithinMs),
  });
  const response = await oauth.discoveryRequest(url, { ...options(), algorithm: "oidc" });
  return { oauth, server: await oauth.processDiscoveryResponse(url, response), options };
}

/** Leaves for the issuer (authorization code with PKCE). */
export async function leaveForIssuer(oidc: Oidc): Promise<void> {
  const { oauth, server } = await discover(oidc.issuer);
  const pending: Pending = {
    state: oauth.generateRandomState(),
    verifier: oauth.generateRandomCodeVerifier(),
    nonce: oauth.generateRandomNonce(),
    hash: location.hash,
  };
  sessionStorage.setItem(pendingName, JSON.stringify(pending));
  if (server.authorization_endpoint === undefined) throw new Error("the issuer names no authorization endpoint");
  const address = new URL(server.authorization_endpoint);
  address.search = new URLSearchParams({
    ...Object.fromEntries(address.searchParams),
    client_id: oidc.clientId,
    redirect_uri: redirectUri(),
    response_type: "code",
    scope: oidc.scope,
    // Some issuers make an access token for the API only if it is asked for by name.
    ...(oidc.usesIdToken ? { nonce: pending.nonce } : { audience: oidc.audience }),
    code_challenge: await oauth.calculatePKCECodeChallenge(pending.verifier),
    code_challenge_method: "S256",
    state: pending.state,
  }).toString();
  location.assign(address);
}

/** Whether the issuer has just sent the user back. */
export const isBack = (): boolean => {
  const query = new URLSearchParams(location.search);
  return query.has("code") || query.has("error");
};

/** Takes the issuer's answer out of the address, and exchanges its code for a token. */
export async function comeBack(oidc: Oidc): Promise<Credential> {
  const address = new URL(location.href);
  const remembered = sessionStorage.getItem(pendingName);
  sessionStorage.removeItem(pendingName);
  const pending = remembered === null ? undefined : (JSON.parse(remembered) as Pending);
  history.replaceState(undefined, "", address.pathname + (pending?.hash ?? address.hash));
  // An answer to no question of this tab: somebody may have made the link.
  if (pending?.state !== address.searchParams.get("state")) throw new Error(text.session.foreignAnswer);
  const { oauth, server, options } = await discover(oidc.issuer);
  const client = { client_id: oidc.clientId };
  const response = await oauth.authorizationCodeGrantRequest(
    server,
    client,
    oauth.None(),
    oauth.validateAuthResponse(server, client, address, pending.state),
    redirectUri(),
    pending.verifier,
    options(),
  );
  const expected = oidc.usesIdToken ? { expectedNonce: pending.nonce, requireIdToken: true } : {};
  const tokens = await oauth.processAuthorizationCodeResponse(server, client, response, expected);
  return credentialOf(oidc, tokens, oauth.getValidatedIdTokenClaims(tokens));
}

const retryMs = 10_000;
let renewing: Promise<void> | undefined;

/** The session's token, renewed if it is due. Until the issuer answers, the old one serves. */
export async function freshToken(): Promise<string | undefined> {
  const { token, renewal } = session.credential() ?? {};
  if (token !== undefined && renewal !== undefined && isRenewalDue()) {
    renewing ??= renew(renewal)
      .catch((error: Error) =>
        // Without a renewal, the session ends when the token does.
        "error" in error ? { token } : { token, renewal: { ...renewal, dueMs: Date.now() + retryMs } },
      )
      .then((credential) => {
        // Meanwhile the user may have signed out.
        if (session.token() === token) session.begin(credential);
      })
      .finally(() => (renewing = undefined));
    await renewing;
  }
  return session.token();
}

/** @throws if the issuer does not answer, or refuses. */
async function renew({ refreshToken, ...from }: Renewal): Promise<Credential> {
  const { oauth, server, options } = await discover(from.issuer);
  const client = { client_id: from.clientId };
  const response = await oauth.refreshTokenGrantRequest(server, client, oauth.None(), refreshToken, options());
  const tokens = await oauth.processRefreshTokenResponse(server, client, response);
  // An issuer that does not rotate its refresh tokens leaves them out.
  return credentialOf(from, { refresh_token: refreshToken, ...tokens }, oauth.getValidatedIdTokenClaims(tokens));
}

interface Tokens {
  readonly access_token: string;
  readonly id_token?: string;
  readonly refresh_token?: string;
  readonly expires_in?: number;
}

/** @param claims of the ID token. Its life is its own: `expires_in` is that of the access token. */
function credentialOf(
  { issuer, clientId, usesIdToken }: Client,
  tokens: Tokens,
  claims: { readonly exp: number; readonly iat: number } | undefined,
): Credential {
  const { access_token, id_token, refresh_token: refreshToken, expires_in } = tokens;
  const token = usesIdToken ? id_token : access_token;
  const seconds = usesIdToken ? claims && claims.exp - claims.iat : expires_in;
  if (token === undefined) throw new Error("the issuer answered no ID token; its scope must have openid");
  if (refreshToken === undefined || seconds === undefined) return { token };
  // Early enough for a slow issuer and a clock that differs.
  return { token, renewal: { issuer, clientId, usesIdToken, refreshToken, dueMs: Date.now() + seconds * 750 } };
}

/** Whether the issuer gave no answer, so that a later try may help. */
const isAway = (error: unknown): boolean =>
  error instanceof TypeError || (error instanceof DOMException && error.name === "TimeoutError");

/** Why a sign-in failed, for its user. */
export function problemOfSignIn({ issuer }: Oidc, error: Error): string {
  const { host } = new URL(issuer);
  if (isAway(error)) return text.session.issuerAway(host);
  const answer = error.cause instanceof URLSearchParams ? Object.fromEntries(error.cause) : error;
  const { error: code, error_description: detail = "" } = answer as { error?: string; error_description?: string };
  return code === undefined ? text.session.failed(error.message) : text.session.issuerRefused(host, code, detail);
}
