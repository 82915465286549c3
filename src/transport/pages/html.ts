/** Safe HTML. Only `html` and `inline` make it, so a page escapes every other value. */
export class Html {
  readonly text: string;

  constructor(text: string) {
    this.text = text;
  }
}

export type Value = string | number | Html | readonly Html[];

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

/** A template that escapes its values unless they are `Html`. */
export function html(strings: TemplateStringsArray, ...values: readonly Value[]): Html {
  return new Html(strings.map((text, i) => (i === 0 ? "" : textOf(values[i - 1] as Value)) + text).join(""));
}

export const nothing = html``;

/** Turns `backticks` into code and [text](target) into links. */
export const inline = (text: string): Html[] =>
  text.split(/(`[^`]*`|\[[^[\]]*\]\([^()\s]*\))/).map((part) => {
    if (part.startsWith("`")) return html`<code>${part.slice(1, -1)}</code>`;
    const [, name, target] = /^\[([^\]]*)\]\((.*)\)$/.exec(part) ?? [];
    return name === undefined ? html`${part}` : html`<a href="${target as string}">${name}</a>`;
  });

/** A table. On a narrow screen, the style sheet shows each row as a card that repeats the head beside its cells. */
export function table(head: readonly string[], rows: readonly (readonly Value[])[]): Html {
  return html`<table>
    <thead>
      <tr>
        ${head.map((cell) => html`<th scope="col">${cell}</th>`)}
      </tr>
    </thead>
    <tbody>
      ${rows.map(
        (row) =>
          html`<tr>
            ${row.map((cell, i) => html`<td data-head="${head[i] ?? ""}"><div>${cell}</div></td>`)}
          </tr>`,
      )}
    </tbody>
  </table>`;
}

/** A heading with a link to itself. */
export const h2 = (id: string, title: Value): Html =>
  html`<h2 id="${id}"><a class="anchor" href="#${id}">${title}</a></h2>`;
