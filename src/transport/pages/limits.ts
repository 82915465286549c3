import { answerHeaderTable } from "../../headers.ts";
import { type Limit, limitTable, timelineLimitTable, typePattern } from "../../limits.ts";
import { h2, html, inline, table } from "./html.ts";
import { page } from "./layout.ts";

const grouped = (value: number) => value.toLocaleString("en").replaceAll(",", "\u202f");

const limitRows = (limits: Readonly<Record<string, Limit>>) =>
  Object.values(limits).map(({ value, unit, of, beyond }) => [
    html`${inline(of)}`,
    html`<b>${grouped(value)}</b> ${unit}`,
    html`${inline(beyond)}`,
  ]);

export function limitsPage(): string {
  const head = ["field", "limit", "beyond it"];
  const body = html`<h1>Limits and headers</h1>
    <p class="lead">The limits are the same over every protocol. Ingest never truncates a value to make it fit.</p>
    ${h2("sending", "Sending")} ${table(head, limitRows(limitTable))}
    <p>
      <code>eventType</code> and <code>snapshotType</code> match <code>${typePattern.source}</code>. Your plan sets how
      many events you may send in a calendar month (UTC, by time of receipt); a snapshot counts as one.
    </p>
    ${h2("reading", "Reading the timeline")} ${table(head, limitRows(timelineLimitTable))}
    ${h2("headers", "Headers of an answer")}
    ${table(
      ["header", "when", "meaning"],
      Object.values(answerHeaderTable).map(({ name, when, meaning }) => [
        html`<code>${name}</code>`,
        when,
        html`${inline(meaning)}`,
      ]),
    )}`;
  return page({ title: "Limits and headers", path: "/docs/limits", body });
}
