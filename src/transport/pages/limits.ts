import { answerHeaderTable } from "../../headers.ts";
import { type Limit, limitTable, timelineLimitTable, typePattern } from "../../limits.ts";
import { html, inline, page, table } from "./html.ts";

const grouped = (value: number) => value.toLocaleString("en").replaceAll(",", "\u202f");

const limitRows = (limits: Readonly<Record<string, Limit>>) =>
  Object.values(limits).map(({ value, unit, of }) => [html`<b>${grouped(value)}</b> ${unit}`, html`${inline(of)}`]);

/** Every bound, and the headers that an answer carries. */
export function limitsPage(): string {
  const body = html`<main class="page">
    <h1>Limits</h1>
    <p class="lead">What is beyond a bound is refused, never cut off. They are the same over every protocol.</p>
    ${table(["at most", ""], limitRows(limitTable))}
    <p>
      <code>eventType</code> and <code>snapshotType</code> look like <code>${typePattern.source}</code>. How many events
      an organisation may send in a calendar month (UTC, by time of receipt) is part of its plan; a snapshot counts as
      one.
    </p>
    <h2>Reading the timeline</h2>
    ${table(["at most", ""], limitRows(timelineLimitTable))}
    <h2>Headers of an answer</h2>
    ${table(
      ["header", "when", "meaning"],
      Object.values(answerHeaderTable).map(({ name, when, meaning }) => [
        html`<code>${name}</code>`,
        when,
        html`${inline(meaning)}`,
      ]),
    )}
  </main>`;
  return page({ title: "Limits", section: "/docs/limits", body });
}
