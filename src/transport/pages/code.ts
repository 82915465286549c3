import { Html, html, nothing } from "./html.ts";

export type Language = "shell" | "js" | "python" | "go" | "json" | "text";

const keywords =
  "async|await|break|const|continue|def|defer|do|done|else|except|export|for|from|func|if|import|in|let|new|nil|None|null|of|package|return|sleep|throw|true|True|false|False|try|type|var|while|with";
/** One pattern for all languages: strings, comments, keywords, numbers. */
const tokens = new RegExp(
  [
    /(?<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\])*'|`[^`]*`)(?<member>\s*:(?= |$))?/,
    /(?<comment>(?<=^|\s)(?:#|\/\/)[^\n]*)/,
    new RegExp(`(?<keyword>\\b(?:${keywords})\\b(?!-))`),
    /(?<number>(?<![\w.-])\d[\d.]*(?![\w.-]))/,
  ]
    .map(({ source }) => source)
    .join("|"),
  "gm",
);

/** Languages with fewer keywords: most words in a shell command are arguments. */
const fewKeywords: Readonly<Partial<Record<Language, RegExp>>> = {
  shell: /^(for|do|done|while|export)$/,
  json: /^(true|false|null)$/,
};

/** Marks the tokens of a text for the style sheet. */
export function highlight(text: string, language: Language): Html {
  if (language === "text") return html`${text}`;
  const parts: Html[] = [];
  let end = 0;
  for (const match of text.matchAll(tokens)) {
    const { string, member, comment, keyword } = match.groups as Record<string, string | undefined>;
    if (keyword !== undefined && !(fewKeywords[language]?.test(keyword) ?? true)) continue;
    const kind = [member && "p", string && "s", comment && "c", keyword && "k", "n"].find(Boolean) as string;
    const marked = member === undefined ? match[0] : (string as string);
    parts.push(html`${text.slice(end, match.index)}<i class="${kind}">${marked}</i>${member ?? ""}`);
    end = match.index + match[0].length;
  }
  return html`${parts}${text.slice(end)}`;
}

/** A command, a program or an answer, with a copy button. */
export function block(text: string, language: Language = "shell", label = ""): Html {
  return html`<figure class="code" data-label="${label}">
    <figcaption>
      <span>${label}</span><button type="button" class="copy" hidden aria-label="Copy this code">Copy</button>
    </figcaption>
    <pre tabindex="0"><code>${highlight(text, language)}</code></pre>
  </figure>`;
}

export interface Sample {
  readonly label: string;
  readonly language: Language;
  readonly text: string;
}

/** The same sample in several languages. The pages' script shows one of them and remembers the reader's choice. */
export const samples = (all: readonly Sample[]): Html =>
  all.length === 0
    ? nothing
    : html`<div class="samples">${all.map(({ label, language, text }) => block(text, language, label))}</div>`;
