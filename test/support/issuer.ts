import { createHash, randomUUID } from "node:crypto";
import { createServer, type IncomingMessage, type RequestListener, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { text } from "node:stream/consumers";
import { type CryptoKey, exportJWK, exportSPKI, generateKeyPair, type JWK, type JWTPayload, SignJWT } from "jose";

export interface SigningKey {
  readonly kid: string;
  readonly privateKey: CryptoKey;
  readonly jwk: JWK;
  readonly pem: string;
}

export async function newSigningKey(kid: string, alg = "RS256"): Promise<SigningKey> {
  const { privateKey, publicKey } = await generateKeyPair(alg, { extractable: true });
  return { kid, privateKey, jwk: { ...(await exportJWK(publicKey)), kid, alg }, pem: await exportSPKI(publicKey) };
}

/** A real issuer: an HTTP server on loopback with metadata and keys. */
export class Issuer {
  /** Paths asked for, in order. */
  readonly asked: string[] = [];
  published: SigningKey[];
  /** Answers in its place. */
  trouble: RequestListener | undefined;
  metadata: object = {};
  readonly #server = createServer((request, response) => {
    this.asked.push(request.url ?? "");
    if (this.trouble !== undefined) this.trouble(request, response);
    else this.answer(request, response);
  });
  url = "";

  constructor(published: SigningKey[]) {
    this.published = published;
  }

  protected answer(request: IncomingMessage, response: ServerResponse): void {
    const answer =
      request.url === "/realm/.well-known/openid-configuration"
        ? { issuer: this.url, jwks_uri: `${this.url}/keys`, ...this.metadata }
        : { keys: this.published.map(({ jwk }) => jwk) };
    response.end(JSON.stringify(answer));
  }

  async start(port = 0): Promise<this> {
    await new Promise<void>((resolve) => this.#server.listen(port, "127.0.0.1", resolve));
    this.url = `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}/realm`;
    return this;
  }

  /** How often it was asked for keys. */
  get fetches(): number {
    return this.asked.filter((path) => path.endsWith("/keys")).length;
  }

  stop(): Promise<void> {
    this.#server.closeAllConnections();
    return new Promise((resolve) => this.#server.close(() => resolve()));
  }
}

interface Grant {
  readonly challenge: string | null;
  readonly redirectUri: string;
  readonly nonce: string | null;
}

/** An issuer where people sign in: the authorization code flow with PKCE for one public client, as RFC 9700 asks. */
export class SignInIssuer extends Issuer {
  readonly clientId = "console";
  readonly audience = "ingest";
  /** Addresses of the client, to which it sends people back. */
  readonly redirectUris = new Set<string>();
  /** Of every token. */
  claims: JWTPayload = {};
  expiresInSeconds = 600;
  /** The ID token may live shorter than the access token. */
  idTokenSeconds = 600;
  givesRefreshToken = false;
  /** What the token endpoint granted or refused, in order. */
  readonly granted: string[] = [];
  readonly #codes = new Map<string, Grant>();
  readonly #refreshTokens = new Set<string>();

  override async start(port?: number): Promise<this> {
    await super.start(port);
    this.metadata = {
      authorization_endpoint: `${this.url}/authorize`,
      token_endpoint: `${this.url}/token`,
      authorization_response_iss_parameter_supported: true,
    };
    return this;
  }

  sign(claims: JWTPayload): Promise<string> {
    const [key] = this.published as [SigningKey];
    const now = Math.floor(Date.now() / 1000);
    return new SignJWT({ iss: this.url, sub: "ada", iat: now, exp: now + 600, ...this.claims, ...claims })
      .setProtectedHeader({ alg: "RS256", kid: key.kid })
      .sign(key.privateKey);
  }

  protected override answer(request: IncomingMessage, response: ServerResponse): void {
    const { pathname, searchParams } = new URL(request.url ?? "", this.url);
    const { origin = "" } = request.headers;
    const isOfClient = [...this.redirectUris].some((uri) => new URL(uri).origin === origin);
    if (isOfClient) response.setHeader("access-control-allow-origin", origin);
    if (pathname === "/realm/authorize") this.#authorize(searchParams, response);
    else if (pathname === "/realm/token" && request.method === "POST") void this.#token(request, response);
    else super.answer(request, response);
  }

  /** A page that asks the user. An address that is not the client's own gets no answer: it could be anybody's. */
  #authorize(query: URLSearchParams, response: ServerResponse): void {
    const [redirectUri, state] = [query.get("redirect_uri") ?? "", query.get("state")];
    const isKnown = query.get("client_id") === this.clientId && this.redirectUris.has(redirectUri);
    const isWhole = query.get("response_type") === "code" && query.get("code_challenge_method") === "S256" && state;
    if (!isKnown || !isWhole) return void response.writeHead(400).end(`not a sign-in: ${query}`);
    const code = randomUUID();
    this.#codes.set(code, { challenge: query.get("code_challenge"), redirectUri, nonce: query.get("nonce") });
    const link = (name: string, answer: Record<string, string>) =>
      `<a href="${redirectUri}?${new URLSearchParams({ ...answer, state, iss: this.url })}">${name}</a>`.replaceAll(
        "&",
        "&amp;",
      );
    const refusal = { error: "access_denied", error_description: "Ada said no" };
    response.setHeader("content-type", "text/html");
    response.end(`<!doctype html><title>Issuer</title>${link("Allow", { code })} ${link("Refuse", refusal)}`);
  }

  async #token(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const form = new URLSearchParams(await text(request));
    const type = form.get("grant_type") ?? "";
    const grant = form.get("client_id") === this.clientId ? this.#grantOf(type, form) : undefined;
    this.granted.push(grant === undefined ? `no ${type}` : type);
    response.setHeader("content-type", "application/json");
    if (grant === undefined) return void response.writeHead(400).end(JSON.stringify({ error: "invalid_grant" }));
    const nonce = grant.nonce === null ? {} : { nonce: grant.nonce };
    const refresh_token = randomUUID();
    this.#refreshTokens.add(refresh_token);
    const answer = {
      token_type: "Bearer",
      expires_in: this.expiresInSeconds,
      access_token: await this.sign({ aud: this.audience, jti: randomUUID() }),
      id_token: await this.sign({
        ...{ aud: this.clientId, ...nonce, exp: Math.floor(Date.now() / 1000) + this.idTokenSeconds },
      }),
      ...(this.givesRefreshToken ? { refresh_token } : {}),
    };
    response.end(JSON.stringify(answer));
  }

  /** Codes and refresh tokens work once. */
  #grantOf(type: string, form: URLSearchParams): Pick<Grant, "nonce"> | undefined {
    if (type === "refresh_token") {
      return this.#refreshTokens.delete(form.get("refresh_token") ?? "") ? { nonce: null } : undefined;
    }
    const code = form.get("code") ?? "";
    const grant = type === "authorization_code" ? this.#codes.get(code) : undefined;
    this.#codes.delete(code);
    const proof = createHash("sha256")
      .update(form.get("code_verifier") ?? "")
      .digest("base64url");
    return grant?.challenge === proof && grant.redirectUri === form.get("redirect_uri") ? grant : undefined;
  }
}
