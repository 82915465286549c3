/**
 * Removes secrets from a text. API keys and access tokens (also misspelt, cut or percent-encoded) are reduced to their
 * hints, OIDC tokens go, and URIs lose user name and password. Takes time linear in the text's length.
 */
export const redactSecrets = (text: string): string => withoutCredentials(withoutJwts(text.replace(keyPattern, "$1…")));

/**
 * Prepares a caller's text for a log line or a record: cuts it to `charactersMax`, and removes secrets and runs of
 * digits that could be a key without its prefix.
 */
export function redactCallerText(text: string, charactersMax: number): string {
  // Cut first, so that a long text costs no more than a short one.
  const cut = text.length > charactersMax ? `${text.slice(0, charactersMax)}…` : text;
  return redactSecrets(cut).replace(/[0-9a-f]{28,}/gi, "…");
}

const keyPattern = /(wp(?:_|%5f)[a-z]{3,4}(?:_|%5f)[0-9a-z]{4})[0-9a-z]+/gi;

/** The beginning of a JWT is `{"` in base64url. The look-behind lets a word begin only one match. */
const jwtPattern = /(?<![\w-])eyJ[\w-]+\.[\w-]+(\.[\w-]*)?/g;

/** Most texts have no JWT, and `includes` is far cheaper than the pattern. */
const withoutJwts = (text: string) => (text.includes("eyJ") ? text.replace(jwtPattern, "eyJ…") : text);

const wordEndPattern = /[\s"'<>]/g;

/** Removes the text between `://` and the last `@` of a word: a password may contain an unencoded `@`. */
function withoutCredentials(text: string): string {
  let kept = "";
  let from = 0;
  for (let at = text.indexOf("://"); at >= 0; at = text.indexOf("://", from)) {
    const start = at + 3;
    wordEndPattern.lastIndex = start;
    const end = wordEndPattern.exec(text)?.index ?? text.length;
    const last = text.slice(start, end).lastIndexOf("@");
    kept += last < 0 ? text.slice(from, end) : `${text.slice(from, start)}…${text.slice(start + last, end)}`;
    from = end;
  }
  return kept + text.slice(from);
}
