import { limits, timelineLimits } from "../../limits.ts";
import { block, samples } from "./code.ts";
import { h2, html, table } from "./html.ts";
import { page } from "./layout.ts";
import { snippets } from "./snippets.ts";

/** The guides by path. @param publicUrl the service's public address. */
export const guidePages: Readonly<Record<string, (publicUrl: string) => string>> = {
  "/docs/quickstart": quickstart,
  "/docs/authentication": authentication,
  "/docs/retries": retries,
  "/docs/timeline": timeline,
};

const grouped = (value: number) => value.toLocaleString("en").replaceAll(",", "\u202f");
const firstEvent = {
  events: [
    {
      eventType: "ticket.resolved",
      category: "project_management",
      actor: { externalId: "crm-user-42", displayName: "Alex Chen" },
      duration: 240,
    },
  ],
};

function quickstart(publicUrl: string): string {
  const body = html`<h1>Quickstart</h1>
    <p class="lead">Send a first event, read it back, and learn the terms. It takes five minutes.</p>
    <ol class="steps">
      <li>
        ${h2("key", "Get two keys")}
        <p>
          The operator of Ingest creates them: one key that sends, and one that reads. Ingest shows each key once, so
          keep it like a password.
        </p>
        ${block(
          `ingest key create --app app_…                # sends
ingest key create --app app_… --scope read   # reads`,
          "shell",
          "For the operator",
        )}
        ${block(`export WEPEOPLE_API_KEY=wp_live_…\nexport WEPEOPLE_READ_KEY=wp_live_…`, "shell", "For you")}
      </li>
      <li>
        ${h2("ping", "Check the key")}
        <p>The answer names your organisation and the app that the key belongs to.</p>
        ${samples(snippets({ method: "GET", url: `${publicUrl}/api/v1/ingest/ping`, keyVariable: "WEPEOPLE_API_KEY" }))}
      </li>
      <li>
        ${h2("send", "Send an event")}
        <p>
          <code>eventType</code> must be on the app's whitelist; the operator adds it with
          <code>ingest app allow app_… ticket.resolved</code>. Use any id of your own for the worker: Ingest creates the
          worker when it sees the id for the first time.
        </p>
        ${samples(
          snippets({
            method: "POST",
            url: `${publicUrl}/api/v1/ingest/events`,
            keyVariable: "WEPEOPLE_API_KEY",
            body: firstEvent,
          }),
        )}
        <p>
          <code>202</code> means that every event is stored. <code>207</code> means that some were refused:
          <code>results.rejected</code> says which and why.
        </p>
      </li>
      <li>
        ${h2("read", "Read it back")}
        <p>The newest event comes first, so yours is on top.</p>
        ${samples(
          snippets({
            method: "GET",
            url: `${publicUrl}/api/v1/timeline/events?pageSize=5`,
            keyVariable: "WEPEOPLE_READ_KEY",
          }),
        )}
      </li>
    </ol>
    ${h2("words", "Terms")}
    ${table(
      ["term", "meaning"],
      [
        ["Organisation", "A customer. It owns apps, workers and a monthly quota of events."],
        ["App", "One service that sends events. It has its own keys and its own whitelist of event types."],
        ["Key", "Lets an app send events, or read the timeline. It can expire, and the operator can revoke it."],
        [
          "Worker",
          "The person or system that the work is about. Name it by workerId, by your own externalId, or by email.",
        ],
        ["Event", "Something that a worker did, at a point in time: a ticket resolved, a build shipped."],
        ["Snapshot", "Current figures, such as 7 open tickets. The newest snapshot is the worker's card of that type."],
      ],
    )}
    ${h2("next", "Next")}
    <ul>
      <li>Before production, read <a href="/docs/retries">idempotency and retries</a>.</li>
      <li>To try a request without storing anything, send <code>X-Dry-Run: true</code>: the answer stays the same.</li>
      <li>Every call with every field is in the <a href="/docs">reference</a>.</li>
    </ul>`;
  return page({ title: "Quickstart", path: "/docs/quickstart", body });
}

function authentication(publicUrl: string): string {
  const body = html`<h1>Authentication</h1>
    <p class="lead">Every call carries an API key in the <code>Authorization</code> header.</p>
    ${block("Authorization: Bearer wp_live_0123456789abcdef0123456789abcdef", "text", "In every request")}
    <p>
      A key is <code>wp_live_</code> and 32 hexadecimal digits. Over gRPC and Connect the header is metadata with the
      same name in lower case. Ingest does not accept a key in the URL or in the body.
    </p>
    ${h2("scopes", "What a key may do")}
    ${table(
      ["scope", "calls", "create it with"],
      [
        [html`<code>ingest</code>`, "Ping, Events, Snapshots", html`<code>ingest key create --app app_…</code>`],
        [
          html`<code>read</code>`,
          "Ping, ListEvents, ListSnapshots, WatchEvents",
          html`<code>ingest key create --app app_… --scope read</code>`,
        ],
      ],
    )}
    <p>Give each service its own key, so that you can revoke one without the others.</p>
    ${h2("restrictions", "Narrow a key")}
    <p>
      A key may have a list of event types, which narrows the whitelist of its app, and a list of addresses and CIDR
      blocks that may use it. Any other event type is
      <a href="/docs/errors/forbidden_event_type"><code>forbidden_event_type</code></a
      >, and a call from any other address is <a href="/docs/errors/forbidden_scope"><code>forbidden_scope</code></a
      >.
    </p>
    ${h2("test", "Test keys")}
    <p>
      A key that begins with <code>wp_test_</code> makes the same calls on a test timeline. No live key sees that
      timeline, it costs no quota, and everything in it goes after 7 days.
    </p>
    ${h2("check", "Check a key")}
    ${samples(snippets({ method: "GET", url: `${publicUrl}/api/v1/ingest/ping`, keyVariable: "WEPEOPLE_API_KEY" }))}
    ${h2("rotate", "Replace a key without downtime")}
    ${block("ingest key rotate key_… --grace 24h", "shell", "For the operator")}
    <p>
      The new key works at once. The old one works until the grace period ends, so deploy the new key before that. If a
      key has leaked, run <code>ingest key revoke key_…</code>: every instance refuses it within a second.
    </p>
    ${h2("errors", "When a key is refused")}
    ${table(
      ["code", "what to do"],
      [
        [
          html`<a href="/docs/errors/missing_authorization"><code>missing_authorization</code></a>`,
          "Send the header; many proxies drop it unless told to keep it.",
        ],
        [html`<a href="/docs/errors/invalid_key"><code>invalid_key</code></a>`, "Check that you copied the whole key."],
        [html`<a href="/docs/errors/key_revoked"><code>key_revoked</code></a>`, "Create a new key."],
        [html`<a href="/docs/errors/key_expired"><code>key_expired</code></a>`, "Create a new key."],
        [
          html`<a href="/docs/errors/forbidden_scope"><code>forbidden_scope</code></a>`,
          "Use a key of the other scope, or call from an address in the key's CIDR list.",
        ],
      ],
    )}
    ${h2("safe", "Keep keys safe")}
    <p>
      Keep a key on your servers and in the environment, not in a browser or a repository. Ingest stores only its hash
      and logs only its first digits.
    </p>`;
  return page({ title: "Authentication", path: "/docs/authentication", body });
}

function retries(publicUrl: string): string {
  const url = `${publicUrl}/api/v1/ingest/events`;
  const event = `{ eventType: "ticket.resolved", category: "project_management", actor: { externalId: "crm-user-42" } }`;
  const body = html`<h1>Idempotency and retries</h1>
    <p class="lead">
      Give every request its own Idempotency-Key. Then you may send the request again until an answer comes.
    </p>
    ${h2("key", "How the key works")}
    <ul>
      <li>
        The same request with the same key gets the first answer again, byte for byte, and stores nothing.
        <code>Idempotency-Replayed: true</code> marks it.
      </li>
      <li>
        Ingest remembers the answer for ${limits.idempotencyWindowSeconds / 60} minutes. It does so for each API key, on
        all instances and over all protocols.
      </li>
      <li>Ingest refuses a different request with the same key: <code>invalid_body</code>.</li>
      <li>Ingest does not remember a request that failed as a whole: correct it and use the key again.</li>
      <li>Without a key, a retry after a lost answer stores the events a second time.</li>
    </ul>
    ${h2("when", "When to retry")}
    ${table(
      ["what you got", "what to do"],
      [
        ["No answer, or a timeout", "Send the same request again with the same key."],
        [
          html`<code>429</code> <a href="/docs/errors/rate_limited"><code>rate_limited</code></a>`,
          html`Wait as long as <code>Retry-After</code> says, then send it again.`,
        ],
        [
          html`<code>500</code> <a href="/docs/errors/internal_error"><code>internal_error</code></a>`,
          html`Wait as long as <code>Retry-After</code> says. Without that header, wait 1 s, then 2, 4, 8 …, with some
            randomness.`,
        ],
        [
          html`<code>207</code>`,
          html`The accepted events are stored. Fix the others (<code>results.rejected</code>) and send only those, with
          a new key.`,
        ],
        ["Any other error", "Do not retry. Fix the request, the key or the plan first."],
      ],
    )}
    ${h2("code", "In code")}
    <p>Each program makes the key once and uses it for all attempts.</p>
    ${samples([
      {
        label: "curl",
        language: "shell",
        text: `curl --retry 7 --retry-connrefused "${url}" \\
  -H "Authorization: Bearer $WEPEOPLE_API_KEY" \\
  -H "Content-Type: application/json" \\
  -H "Idempotency-Key: $(openssl rand -hex 16)" \\
  -d '{"events": [{
    "eventType": "ticket.resolved",
    "category": "project_management",
    "actor": {"externalId": "crm-user-42"}
  }]}'`,
      },
      {
        label: "JavaScript",
        language: "js",
        text: `async function send(events) {
  const key = crypto.randomUUID();
  for (let attempt = 0; ; attempt++) {
    let wait = 2 ** attempt * (0.5 + Math.random());
    try {
      const response = await fetch("${url}", {
        method: "POST",
        headers: {
          Authorization: \`Bearer \${process.env.WEPEOPLE_API_KEY}\`,
          "Content-Type": "application/json",
          "Idempotency-Key": key,
        },
        body: JSON.stringify({ events }),
        signal: AbortSignal.timeout(15_000),
      });
      const answer = await response.json();
      if (response.ok) return answer;
      if (response.status !== 429 && response.status < 500) throw new TypeError(answer.error.message);
      wait = Math.max(wait, Number(response.headers.get("Retry-After")));
    } catch (error) {
      if (error instanceof TypeError && error.cause === undefined) throw error;
      if (attempt === 7) throw error;
    }
    if (attempt === 7) throw new Error("no success after 8 attempts");
    await new Promise((resolve) => setTimeout(resolve, wait * 1000));
  }
}

console.log(await send([${event}]));`,
      },
      {
        label: "Python",
        language: "python",
        text: `import json, os, random, time, urllib.error, urllib.request, uuid

def send(events):
    request = urllib.request.Request(
        "${url}",
        method="POST",
        headers={
            "Authorization": f"Bearer {os.environ['WEPEOPLE_API_KEY']}",
            "Content-Type": "application/json",
            "Idempotency-Key": str(uuid.uuid4()),
        },
        data=json.dumps({"events": events}).encode(),
    )
    for attempt in range(8):
        wait = 2**attempt * random.uniform(0.5, 1.5)
        try:
            with urllib.request.urlopen(request, timeout=15) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 429 and error.code < 500:
                raise
            wait = max(wait, float(error.headers.get("Retry-After", 0)))
        except OSError:
            pass  # no answer
        time.sleep(wait)
    raise RuntimeError("no success after 8 attempts")

print(send([{
    "eventType": "ticket.resolved",
    "category": "project_management",
    "actor": {"externalId": "crm-user-42"},
}]))`,
      },
    ])}
    ${h2("rates", "Stay below the rate limits")}
    <p>
      Usually a key may send ${limits.keyRequestsPerSecond} requests a second, and an organisation
      ${limits.organizationRequestsPerSecond}. Put up to ${limits.eventsMax} events into one request.
      <code>X-RateLimit-Remaining</code> says how many requests are left at this moment.
    </p>`;
  return page({ title: "Idempotency and retries", path: "/docs/retries", body });
}

function timeline(publicUrl: string): string {
  const url = `${publicUrl}/api/v1/timeline/events`;
  const body = html`<h1>Pagination and streams</h1>
    <p class="lead">Read what your organisation's apps have sent: page by page, or as a stream.</p>
    <p>
      All these calls need a key with the scope <code>read</code>:
      <code>ingest key create --app app_… --scope read</code>.
    </p>
    ${h2("pages", "Read page by page")}
    <p>
      Lists begin with the newest row. <code>pageSize</code> is ${timelineLimits.rowsDefault} by default and at most
      ${timelineLimits.rowsMax}. If <code>nextPageToken</code> is not empty, there is another page: send the token as
      <code>pageToken</code>, with the same filters. A page may have fewer rows than you asked for, even none. Only the
      empty token means the end.
    </p>
    ${samples([
      {
        label: "JavaScript",
        language: "js",
        text: `let pageToken = "";
do {
  const query = new URLSearchParams({ startTime: "2026-04-19T00:00:00Z", pageSize: "500", pageToken });
  if (pageToken === "") query.delete("pageToken");
  const response = await fetch(\`${url}?\${query}\`, {
    headers: { Authorization: \`Bearer \${process.env.WEPEOPLE_READ_KEY}\` },
  });
  if (!response.ok) throw new Error(await response.text());
  const page = await response.json();
  for (const event of page.events) console.log(event.timestamp, event.type, event.workerId);
  pageToken = page.nextPageToken;
} while (pageToken !== "");`,
      },
      {
        label: "Python",
        language: "python",
        text: `import json, os, urllib.parse, urllib.request

query = {"startTime": "2026-04-19T00:00:00Z", "pageSize": 500}
while True:
    request = urllib.request.Request(
        "${url}?" + urllib.parse.urlencode(query),
        headers={"Authorization": f"Bearer {os.environ['WEPEOPLE_READ_KEY']}"},
    )
    with urllib.request.urlopen(request) as response:
        page = json.load(response)
    for event in page["events"]:
        print(event["timestamp"], event["type"], event["workerId"])
    if page["nextPageToken"] == "":
        break
    query["pageToken"] = page["nextPageToken"]`,
      },
    ])}
    <p>
      New rows do not shift the pages, and a token does not expire. The filters are <code>workerId</code>,
      <code>type</code>, <code>category</code>, <code>kind</code>, <code>startTime</code> (inclusive) and
      <code>endTime</code> (exclusive), in any combination.
    </p>
    ${h2("stream", "Follow new rows")}
    <p>
      <code>WatchEvents</code> sends one JSON message on each line, with <code>events</code> and a
      <code>resumeToken</code>. With <code>Accept: text/event-stream</code> it sends server-sent events instead. A
      message comes at least every ${timelineLimits.heartbeatSeconds} seconds; one without events is a heartbeat.
    </p>
    ${block(
      `curl -N "${url}:watch" \\
  -H "Authorization: Bearer $WEPEOPLE_READ_KEY"`,
      "shell",
      "curl",
    )}
    ${h2("resume", "Resume after a break")}
    <p>
      Keep the <code>resumeToken</code> of the last message that you have handled. Call again with
      <code>resumeToken=…</code>, and the stream continues right after that message: no row is lost, and none comes
      twice. <code>EventSource</code> in browsers does this by itself.
    </p>
    ${table(
      ["ended with", "why", "what to do"],
      [
        [html`no message`, "The connection broke.", html`Call again with the last <code>resumeToken</code>.`],
        [
          html`<code>endReason: "duration"</code>`,
          `The stream has run for ${timelineLimits.watchSecondsMax / 60} minutes.`,
          html`Call again with its <code>resumeToken</code>.`,
        ],
        [html`<code>endReason: "shutdown"</code>`, "The instance stops.", html`Call again; another instance answers.`],
        [
          html`<code>endReason: "slow_reader"</code>`,
          `More than ${grouped(timelineLimits.bufferedRowsMax)} rows were waiting for you.`,
          html`Read faster, or use filters. Then call again with its <code>resumeToken</code>.`,
        ],
        [
          html`<code>invalid_body</code>`,
          "The token is too old: MongoDB keeps changes for hours to days.",
          html`Begin without a token, and list the events that you missed.`,
        ],
      ],
    )}`;
  return page({ title: "Pagination and streams", path: "/docs/timeline", body });
}
