import { connectCodesOf, type ErrorCode, type ErrorDefinition, errorTable } from "../../errors.ts";
import { grpcCodeName, grpcExample, restExample } from "./examples.ts";
import { block, html, inline, page, table } from "./html.ts";
import { reactions } from "./reactions.ts";

const codes = Object.keys(errorTable) as ErrorCode[];

/** All codes, and what holds for each. */
export function errorIndexPage(): string {
  const rows = codes.map((code) => {
    const { http, when, retryable } = errorTable[code];
    const link = html`<a href="/docs/errors/${code}"><code>${code}</code></a>`;
    return [
      link,
      http,
      html`${connectCodesOf(code).map((name) => html`<code>${grpcCodeName(name)}</code> `)}`,
      html`${inline(when)}`,
      retryable ? "yes" : "no",
    ];
  });
  const body = html`<main class="page">
    <h1>Errors</h1>
    <p class="lead">
      Check the code first; the message is for people and may be reworded. Give the request id when you ask for help.
    </p>
    ${table(["code", "HTTP", "gRPC", "when", "retry"], rows)}
    <h2>The form of an error</h2>
    <p>
      REST answers <code>{"error": {"code", "message", "requestId", "docsUrl"}}</code>, exactly these four. Over gRPC,
      gRPC-Web and Connect the code is the <code>reason</code> of a <code>google.rpc.ErrorInfo</code>, beside
      <code>RequestInfo</code>, <code>Help</code> and, where they apply, <code>BadRequest</code> (one violation an
      issue), <code>RetryInfo</code> and <code>QuotaFailure</code>.
    </p>
    <h2>When to retry</h2>
    <ul>
      <li>
        Give every request that stores something an <code>Idempotency-Key</code> of its own and keep it for the retries:
        the request is then stored once, however often it is sent.
      </li>
      <li>
        Retry when there was no answer at all, and the codes marked so above. Wait as long as
        <code>Retry-After</code> (<code>RetryInfo</code> over RPC) says; without one 1 s, then 2, 4, 8 …, with some
        randomness.
      </li>
      <li>
        After a 207 send again only what <code>results.rejected</code> lists, mended, with a new key: the accepted
        events are stored.
      </li>
      <li>Any other error comes back until the request, the key or the plan is changed.</li>
    </ul>
  </main>`;
  return page({ title: "Errors", section: "/docs/errors", body });
}

/** What a code means, and the right reaction. */
export function errorPage(code: ErrorCode, publicUrl: string): string {
  const { http, when, remedy, retryable, wait = "Waiting does not help." }: ErrorDefinition = errorTable[code];
  const { operator, rest, grpc } = reactions[code](publicUrl);
  const verdict = retryable
    ? html`<li class="yes">retry: yes, the same request</li>`
    : html`<li class="no">retry: no, change something first</li>`;
  const body = html`<main class="page">
    <h1><code>${code}</code></h1>
    <p class="lead">${inline(when)}</p>
    <ul class="facts">
      <li>HTTP ${http}</li>
      <li>gRPC ${connectCodesOf(code).map(grpcCodeName).join(" or ")}</li>
      ${verdict}
    </ul>
    <h2>What to do</h2>
    <p>${inline(remedy)}</p>
    <h3>How long to wait</h3>
    <p>${inline(wait)}</p>
    ${
      operator === undefined
        ? html``
        : html`<h3>For whoever administers the organisation</h3>
            ${block(operator)}`
    }
    <h2>The right reaction</h2>
    <h3>REST</h3>
    ${block(rest)}
    <h3>gRPC</h3>
    ${block(grpc)}
    <h2>What it looks like</h2>
    <h3>REST</h3>
    ${block(restExample(code, publicUrl))}
    <h3>gRPC</h3>
    ${block(grpcExample(code, publicUrl))}
    <p><a href="/docs/errors">All codes</a></p>
  </main>`;
  return page({ title: code, section: "/docs/errors", body });
}
