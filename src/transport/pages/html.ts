/** Text that is HTML already. Made only by `html` and its like, so that whatever else is put into a page is escaped. */
export class Html {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

type Value = string | number | Html | readonly Html[];

const entities: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
  "'": "&#39;",
};

const escape = (text: string) => text.replace(/[&<>"']/g, (character) => entities[character] as string);

const textOf = (value: Value): string => {
  if (value instanceof Html) return value.text;
  return typeof value === "object" ? value.map(textOf).join("") : escape(String(value));
};

/** A template whose values are escaped, unless they are HTML. */
export function html(strings: TemplateStringsArray, ...values: readonly Value[]): Html {
  return new Html(strings.map((text, i) => (i === 0 ? "" : textOf(values[i - 1] as Value)) + text).join(""));
}

/** Text in which `backticks` mark code. */
export const inline = (text: string): Html[] =>
  text.split("`").map((part, i) => (i % 2 === 1 ? html`<code>${part}</code>` : html`${part}`));

/** A table whose first row is its head. */
export function table(head: readonly string[], rows: readonly (readonly Value[])[]): Html {
  return html`<div class="scroll">
    <table>
      <thead>
        <tr>
          ${head.map((cell) => html`<th>${cell}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${rows.map(
          (row) =>
            html`<tr>
              ${row.map((cell) => html`<td>${cell}</td>`)}
            </tr>`,
        )}
      </tbody>
    </table>
  </div>`;
}

/** Text as it stands, such as a command or an answer. */
export const block = (text: string): Html => html`<pre><code>${text}</code></pre>`;

const sections = [
  ["/docs", "Reference"],
  ["/docs/errors", "Errors"],
  ["/docs/limits", "Limits"],
] as const;

export interface PageOptions {
  readonly title: string;
  /** Path of the section that it belongs to. */
  readonly section: (typeof sections)[number][0];
  readonly body: Html;
  /** Further elements of the head. */
  readonly head?: Html;
}

/** A whole page. It has no inline script and no inline style, which its policy would not run. */
export function page({ title, section, body, head = html`` }: PageOptions): string {
  const links = sections.map(
    ([path, name]) => html`<a href="${path}" ${path === section ? html`aria-current="page"` : html``}>${name}</a>`,
  );
  return html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${title} · Ingest</title>
        <link rel="icon" href="/docs/static/icon.svg" type="image/svg+xml" />
        <link rel="stylesheet" href="/docs/static/style.css" />
        ${head}
      </head>
      <body>
        <header>
          <nav aria-label="Documentation"><a class="brand" href="/docs">Ingest</a>${links}</nav>
        </header>
        ${body}
      </body>
    </html>`.text;
}
