import { connectCodesOf, type ErrorCode, type ErrorDefinition, errorTable } from "../../errors.ts";
import { block, samples } from "./code.ts";
import { grpcCodeName, grpcExample, restExample } from "./examples.ts";
import { h2, html, inline, nothing, table } from "./html.ts";
import { page } from "./layout.ts";
import { reactions } from "./reactions.ts";

const codes = Object.keys(errorTable) as ErrorCode[];
const contents = codes.map((code) => ({ path: `/docs/errors/${code}`, name: code }));

export function errorIndexPage(): string {
  const rows = codes.map((code) => {
    const { http, when, retryable } = errorTable[code];
    return [
      html`<a href="/docs/errors/${code}"><code>${code}</code></a>`,
      http,
      html`${connectCodesOf(code).map((name) => html`<code>${grpcCodeName(name)}</code> `)}`,
      html`${inline(when)}`,
      retryable ? html`<b class="yes">yes</b>` : "no",
    ];
  });
  const body = html`<h1>Errors</h1>
    <p class="lead">
      Let programs read the code: the message is for people, and its wording may change. Give the request id when you
      ask for help.
    </p>
    ${table(["code", "HTTP", "gRPC", "when", "retry"], rows)} ${h2("form", "The form of an error")}
    <p>Over REST an error has exactly these four members:</p>
    ${block(restExample("invalid_key", "https://ingest.example").split("\n\n").at(-1) ?? "", "json", "REST")}
    <p>
      Over gRPC, gRPC-Web and Connect the code is the <code>reason</code> of a <code>google.rpc.ErrorInfo</code>.
      <code>RequestInfo</code> and <code>Help</code> (the docsUrl) come with it. Some errors also have
      <code>BadRequest</code> (one violation for each issue), <code>RetryInfo</code> or <code>QuotaFailure</code>.
    </p>
    ${h2("retry", "When to retry")}
    <p>
      Retry when no answer came, or when the code is marked above. Use the same <code>Idempotency-Key</code>. See
      <a href="/docs/retries">idempotency and retries</a>.
    </p>`;
  return page({ title: "Errors", path: "/docs/errors", contents, body });
}

export function errorPage(code: ErrorCode, publicUrl: string): string {
  const { http, when, remedy, retryable, wait = "Waiting does not help." }: ErrorDefinition = errorTable[code];
  const { operator, rest, grpc } = reactions[code](publicUrl);
  const verdict = retryable
    ? html`<li class="yes">Retryable: send the same request again</li>`
    : html`<li class="no">Not retryable</li>`;
  const at = codes.indexOf(code);
  const [before, after] = [codes[at - 1], codes[at + 1]];
  const body = html`<p class="crumbs"><a href="/docs">Docs</a> / <a href="/docs/errors">Errors</a></p>
    <h1><code>${code}</code></h1>
    <p class="lead">${inline(when)}</p>
    <ul class="facts">
      <li>HTTP ${http}</li>
      <li>gRPC ${connectCodesOf(code).map(grpcCodeName).join(" or ")}</li>
      ${verdict}
    </ul>
    ${h2("fix", "What to do")}
    <p>${inline(remedy)}</p>
    ${
      operator === undefined
        ? nothing
        : html`<p>Ask your operator to run:</p>
            ${block(operator, "shell", "For the operator")}`
    }
    <h3>How long to wait</h3>
    <p>${inline(wait)}</p>
    ${h2("example", "Example fix")}
    ${samples([
      { label: "curl", language: "shell", text: rest },
      { label: "grpcurl", language: "shell", text: grpc },
    ])}
    ${h2("answer", "What the error looks like")} ${block(restExample(code, publicUrl), "json", "REST")}
    ${block(grpcExample(code, publicUrl), "json", "gRPC")}
    <nav class="turn" aria-label="Other errors">
      ${before === undefined ? html`<span></span>` : html`<a href="/docs/errors/${before}">← ${before}</a>`}
      ${after === undefined ? nothing : html`<a href="/docs/errors/${after}">${after} →</a>`}
    </nav>`;
  return page({ title: code, path: `/docs/errors/${code}`, section: "/docs/errors", contents, body });
}
