import type { Settings } from "./settings.ts";

type Oidc = NonNullable<Settings["oidc"]>;

/** What a sign-in must remember while the user is with the issuer. */
interface Pending {
  readonly state: string;
  readonly verifier: string;
}

const pendingName = "ingest-console-sign-in";

/** The console's own address, to which the issuer sends the user back. */
const redirectUri = () => new URL("./", document.baseURI).href;

/** Loaded only where the service has an issuer. */
const library = () => import("oauth4webapi");

async function discover({ issuer }: Oidc) {
  const oauth = await library();
  const url = new URL(issuer);
  const options = { algorithm: "oidc", [oauth.allowInsecureRequests]: url.hostname === "localhost" } as const;
  const response = await oauth.discoveryRequest(url, options);
  return { oauth, server: await oauth.processDiscoveryResponse(url, response), insecure: options };
}

/** Leaves for the issuer (authorization code with PKCE). */
export async function leaveForIssuer(oidc: Oidc): Promise<void> {
  const { oauth, server } = await discover(oidc);
  const pending: Pending = { state: oauth.generateRandomState(), verifier: oauth.generateRandomCodeVerifier() };
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
    ...(oidc.usesIdToken ? {} : { audience: oidc.audience }),
    code_challenge: await oauth.calculatePKCECodeChallenge(pending.verifier),
    code_challenge_method: "S256",
    state: pending.state,
  }).toString();
  location.assign(address);
}

/** Whether the issuer has just sent the user back. */
export const isBack = (): boolean => {
  const query = new URLSearchParams(location.search);
  return query.has("state") && (query.has("code") || query.has("error"));
};

/** Exchanges the code of the address for a token, and removes it from the address. */
export async function comeBack(oidc: Oidc): Promise<string> {
  const address = new URL(location.href);
  const remembered = sessionStorage.getItem(pendingName);
  sessionStorage.removeItem(pendingName);
  history.replaceState(undefined, "", address.pathname + address.hash);
  if (remembered === null) throw new Error("this tab did not begin the sign-in");
  const { state, verifier } = JSON.parse(remembered) as Pending;
  const { oauth, server, insecure } = await discover(oidc);
  const client = { client_id: oidc.clientId };
  const parameters = oauth.validateAuthResponse(server, client, address, state);
  const response = await oauth.authorizationCodeGrantRequest(
    server,
    client,
    oauth.None(),
    parameters,
    redirectUri(),
    verifier,
    insecure,
  );
  const tokens = await oauth.processAuthorizationCodeResponse(server, client, response);
  const token = oidc.usesIdToken ? tokens.id_token : tokens.access_token;
  if (token === undefined) throw new Error("the issuer answered no ID token; its scope must have openid");
  return token;
}
