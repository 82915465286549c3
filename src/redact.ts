/**
 * Takes secrets out of a text before it is shown or logged: of an API key (also misspelt, cut or percent-encoded) its
 * hint stays, of a URI everything but the user's name and password. Takes time linear in the text's length.
 */
export const redactSecrets = (text: string): string => withoutCredentials(text.replace(keyPattern, "$1…"));

/**
 * A caller's text for a log line or a record: at most `charactersMax` of it, without secrets, and without any run of
 * digits that could be a key without its prefix.
 */
export function redactCallerText(text: string, charactersMax: number): string {
  // The cut comes first, so that a long text costs no more than a short one.
  const cut = text.length > charactersMax ? `${text.slice(0, charactersMax)}…` : text;
  return redactSecrets(cut).replace(/[0-9a-f]{28,}/gi, "…");
}

const keyPattern = /(wp(?:_|%5f)[a-z]{3,4}(?:_|%5f)[0-9a-z]{4})[0-9a-z]+/gi;

const wordEndPattern = /[\s"'<>]/g;

/** The text without what stands between `://` and the last `@` of a word: a password that was not encoded may hold an `@`. */
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
