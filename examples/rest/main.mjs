// Sends two events over REST, retries until the service has answered, and prints each event's result.
import { randomUUID } from "node:crypto";
import { setTimeout as wait } from "node:timers/promises";

const { WEPEOPLE_BASE_URL: baseUrl, WEPEOPLE_API_KEY: apiKey } = process.env;
const actor = { externalId: "crm-user-42" };
const events = [
  { eventType: "ticket.resolved", category: "project_management", actor, duration: 240 },
  { eventType: "deploy.finished", category: "project_management", actor },
];
// The same key on every try: the service stores the batch once, however often it arrives.
const headers = {
  authorization: `Bearer ${apiKey}`,
  "content-type": "application/json",
  "idempotency-key": randomUUID(),
};

/** One try: the answer, or why there is none and how many seconds the service asks to wait, if it says so. */
async function attempt() {
  try {
    const request = { method: "POST", headers, body: JSON.stringify({ events }), signal: AbortSignal.timeout(10_000) };
    const response = await fetch(`${baseUrl}/api/v1/ingest/events`, request);
    const answer = await response.json();
    if (response.ok) return { answer };
    const retryAfter = response.headers.get("retry-after");
    // 429 and 5xx may pass; every other error stays until the request, the key or the plan changes.
    const isFinal = retryAfter === null && response.status < 500;
    return { isFinal, problem: `${answer.error.code}: ${answer.error.message}`, retryAfter };
  } catch (error) {
    // The connection broke, no answer came in time, or a proxy answered with its own page.
    return { isFinal: false, problem: error.message };
  }
}

for (let tries = 1; ; tries++) {
  const { answer, isFinal, problem, retryAfter } = await attempt();
  if (answer !== undefined) {
    console.log(`accepted ${answer.accepted}`);
    for (const { index, code, message } of answer.results.rejected)
      console.log(`rejected ${index} ${code}: ${message}`);
    break;
  }
  if (isFinal || tries === 6) throw new Error(problem);
  const seconds = retryAfter ? Number(retryAfter) : 0.2 * 2 ** tries * (0.5 + Math.random());
  console.error(`try ${tries} failed (${problem}); next in ${seconds.toFixed(1)} s`);
  await wait(seconds * 1000);
}
