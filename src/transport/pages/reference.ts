import { html, page } from "./html.ts";

/** The OpenAPI document, shown by Scalar. */
export function referencePage(): string {
  return page({
    title: "Reference",
    section: "/docs",
    head: html`<script src="/docs/static/scalar.js" defer></script>
      <script src="/docs/static/reference.js" defer></script>`,
    body: html`<div id="reference"></div>
      <noscript>
        <main class="page">
          <h1>Ingest</h1>
          <p class="lead">
            Services push events and metric snapshots about their workers into the monitoring timeline.
          </p>
          <p>
            The reference is shown with the help of JavaScript. The document itself is
            <a href="/openapi/v1.yaml">/openapi/v1.yaml</a>.
          </p>
        </main>
      </noscript>`,
  });
}
