/**
 * Takes secrets out of a text before it is shown or logged: of an API key (also misspelt, cut or percent-encoded) its
 * hint stays, of a URI everything but the user's name and password.
 */
export function redactSecrets(text: string): string {
  const withoutKeys = text.replace(keyPattern, "$1…");
  // Every line of the log comes by, and hardly one holds a URI: looking for it costs a fraction of the pattern.
  return withoutKeys.includes("://") ? withoutKeys.replace(credentialsPattern, "$1…@") : withoutKeys;
}

/** Like `redactSecrets`, and any run of digits that could be a key without its prefix. For what a caller has written. */
export const redactCallerText = (text: string): string => redactSecrets(text).replace(/[0-9a-f]{28,}/gi, "…");

const keyPattern = /(wp(?:_|%5f)live(?:_|%5f)[0-9a-z]{4})[0-9a-z]+/gi;
/** Up to the last `@` of a word, since passwords that were not encoded may hold one. */
const credentialsPattern = /([a-z][a-z0-9+.-]*:\/\/)[^\s"'<>]*@/gi;
