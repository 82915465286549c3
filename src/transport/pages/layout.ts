import { type Html, html, nothing } from "./html.ts";

interface Link {
  readonly path: string;
  readonly name: string;
}

const guides: readonly Link[] = [
  { path: "/docs/quickstart", name: "Quickstart" },
  { path: "/docs/authentication", name: "Authentication" },
  { path: "/docs/retries", name: "Idempotency and retries" },
  { path: "/docs/timeline", name: "Pagination and streams" },
];
const reference: readonly Link[] = [
  { path: "/docs", name: "REST API" },
  { path: "/docs/grpc", name: "gRPC and Connect" },
  { path: "/docs/admin", name: "Administration" },
  { path: "/docs/errors", name: "Errors" },
  { path: "/docs/limits", name: "Limits and headers" },
];

export interface PageOptions {
  readonly title: string;
  /** The page's path; its links are relative to it. */
  readonly path: string;
  /** The highlighted entry of the sidebar; default: `path`. */
  readonly section?: string;
  /** Links below that entry. */
  readonly contents?: readonly Link[];
  readonly body: Html;
}

/**
 * The Content-Security-Policy allows no inline script or style. All links are relative, so they work behind a proxy
 * that puts the service below a path.
 */
export function page({ title, path, section = path, contents = [], body }: PageOptions): string {
  const entry = (link: Link): Html => {
    const below =
      link.path === section && contents.length > 0
        ? html`<ul>
            ${contents.map((inner) => html`<li>${anchor(inner, path)}</li>`)}
          </ul>`
        : nothing;
    return html`<li>${anchor(link, section)}${below}</li>`;
  };
  const { text } = html`<!doctype html>
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="color-scheme" content="light dark" />
        <title>${title} · Ingest</title>
        <link rel="icon" href="/docs/static/icon.svg" type="image/svg+xml" />
        <link rel="stylesheet" href="/docs/static/style.css" />
        <script src="/docs/static/docs.js"></script>
      </head>
      <body>
        <a class="skip" href="#main">Skip to the content</a>
        <header>
          <a class="brand" href="/docs"><img src="/docs/static/icon.svg" alt="" width="24" height="24" />Ingest</a>
          <span class="push"></span>
          <a class="quiet" href="/openapi/v1.yaml">OpenAPI</a>
          <button type="button" class="theme" hidden>Theme</button>
          <button type="button" class="menu" hidden aria-expanded="false" aria-controls="sidebar">Menu</button>
        </header>
        <div class="frame">
          <nav id="sidebar" aria-label="Documentation">
            <h2>Guides</h2>
            <ul>
              ${guides.map(entry)}
            </ul>
            <h2>Reference</h2>
            <ul>
              ${reference.map(entry)}
            </ul>
          </nav>
          <main id="main">${body}</main>
        </div>
      </body>
    </html>`;
  return text.replace(/(?<= (?:href|src|action)=")\/[^"]*(?=")/g, (target) => relative(path, target));
}

const anchor = ({ path, name }: Link, current: string): Html =>
  html`<a href="${path}" ${path === current ? html`aria-current="page"` : nothing}>${name}</a>`;

/** The relative link from one path to another; both begin with a slash. */
export function relative(from: string, to: string): string {
  const here = from.split("/").slice(1, -1);
  const there = to.split("/").slice(1);
  let shared = 0;
  while (shared < here.length && shared < there.length - 1 && here[shared] === there[shared]) shared++;
  return "../".repeat(here.length - shared) + there.slice(shared).join("/") || "./";
}

export function notFoundPage(path: string): string {
  return page({
    title: "Not found",
    path,
    section: "",
    body: html`<h1>Page not found</h1>
      <p class="lead">There is nothing at <code>${path}</code>.</p>
      <p>
        The <a href="/docs">reference</a> lists every path of the API. New here? Begin with the
        <a href="/docs/quickstart">quickstart</a>.
      </p>`,
  });
}
