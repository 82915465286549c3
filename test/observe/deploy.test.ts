import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { parse } from "yaml";
import { Metrics } from "../../src/observe/metrics.ts";
import { Connections } from "../../src/transport/http/connections.ts";
import { serverBounds } from "../../src/transport/http/server-limits.ts";
import { startService, type TestService } from "../support/service.ts";

const rulesPath = "deploy/prometheus/alerts.yaml";
const dashboardPath = "deploy/grafana/ingest.json";
/** Labels that Prometheus adds to each scrape. */
const scrapeLabels = ["instance", "job", "le"];

let service: TestService;
let text: string;
let metrics: ReadonlyMap<string, ReadonlySet<string>>;

beforeAll(async () => {
  service = await startService();
  text = await (await fetch(`${service.app.adminUrl}/metrics`)).text();
  metrics = labelsByName(text, await declaredLabels());
});
afterAll(() => service.app.close());

/** The labels that each metric declares. The page shows them only once the metric has a sample. */
async function declaredLabels(): Promise<Map<string, readonly string[]>> {
  const declared = new Metrics();
  declared.watchPools({});
  declared.watchCaches({});
  declared.watchRecords({});
  declared.watchConnections(() => new Connections(serverBounds).counts(), {});
  const found = declared.registry.getMetricsAsArray() as unknown as { name: string; labelNames: string[] }[];
  return new Map(found.map(({ name, labelNames }) => [name, labelNames]));
}

/** Every name on the page, with its labels. */
function labelsByName(page: string, declared: ReadonlyMap<string, readonly string[]>): Map<string, Set<string>> {
  const found = new Map<string, Set<string>>();
  for (const [, name, type] of page.matchAll(/^# TYPE (\S+) (\S+)$/gm)) {
    const labels = new Set([...scrapeLabels, ...(declared.get(name as string) ?? [])]);
    for (const suffix of type === "histogram" ? ["_bucket", "_sum", "_count"] : [""])
      found.set(`${name}${suffix}`, labels);
  }
  return found;
}

/** The problems of an expression: metrics and labels that do not exist. */
function problemsOf(expression: string): string[] {
  const used = [...expression.matchAll(/\b((?:ingest|nodejs|process)_[a-z0-9_]+)(?:\{([^}]*)\})?/g)];
  const known = new Set<string>(scrapeLabels);
  const problems = used.length === 0 ? [`no metric in: ${expression}`] : [];
  for (const [, name, selector] of used) {
    const labels = metrics.get(name as string);
    if (labels === undefined) problems.push(`${name} does not exist`);
    for (const label of labels ?? []) known.add(label);
    for (const [, label] of (selector ?? "").matchAll(/(\w+)\s*(?:=~|!~|!=|=)/g)) {
      if (labels?.has(label as string) === false) problems.push(`${name} has no label ${label}`);
    }
  }
  for (const [, list] of expression.matchAll(/\b(?:by|without|on|ignoring)\s*\(([^)]*)\)/g)) {
    for (const label of (list as string).split(",")) {
      if (!known.has(label.trim())) problems.push(`no metric of the expression has the label ${label.trim()}`);
    }
  }
  return problems;
}

test("every expression of the alert rules uses existing metrics and labels", () => {
  const { groups } = parse(readFileSync(rulesPath, "utf8"));
  const rules = groups.flatMap((group: any) => group.rules);
  expect(rules.length).toBeGreaterThan(5);
  for (const { alert, expr, annotations, labels } of rules) {
    expect(problemsOf(expr), alert).toEqual([]);
    expect(Object.keys(annotations), alert).toEqual(["summary", "action"]);
    expect(["critical", "warning", "info"], alert).toContain(labels.severity);
  }
});

test("every panel of the dashboard uses existing metrics and labels, and no two panels overlap", () => {
  const { panels, templating } = JSON.parse(readFileSync(dashboardPath, "utf8"));
  const taken = new Set<string>();
  for (const { title, type, targets = [], gridPos: at } of panels) {
    for (const { expr } of targets) expect(problemsOf(expr), title).toEqual([]);
    expect(targets.length > 0, title).toBe(type !== "row");
    for (let x = at.x; x < at.x + at.w; x++) {
      for (let y = at.y; y < at.y + at.h; y++) {
        expect(taken.has(`${x},${y}`), title).toBe(false);
        taken.add(`${x},${y}`);
      }
    }
  }
  for (const { definition } of templating.list)
    if (definition !== undefined) expect(problemsOf(definition)).toEqual([]);
});

test("the dashboard has every metric of Ingest", () => {
  const dashboard = readFileSync(dashboardPath, "utf8");
  const own = [...text.matchAll(/^# TYPE (ingest_\S+) /gm)].map(([, name]) => name as string);
  expect(own.length).toBeGreaterThan(10);
  expect(own.filter((name) => !dashboard.includes(name))).toEqual([]);
});

test("the search for metrics finds a missing metric and a missing label", () => {
  expect(problemsOf("rate(ingest_nothing_total[5m])")).toEqual(["ingest_nothing_total does not exist"]);
  expect(problemsOf('sum(ingest_requests_total{organization="x"})')).toEqual([
    "ingest_requests_total has no label organization",
  ]);
  expect(problemsOf("sum by (rcp) (ingest_requests_total)")).toHaveLength(1);
});

const promtool = spawnSync("promtool", ["--version"]).status === 0;

test.skipIf(!promtool)("promtool finds nothing wrong with the rules, the expressions and the page", () => {
  execFileSync("promtool", ["check", "rules", "--lint-fatal", rulesPath], { stdio: "pipe" });
  // prom-client chose the names of its default metrics, so do not lint them.
  const own = text.split(/^(?=# HELP )/m).filter((block) => block.startsWith("# HELP ingest_"));
  execFileSync("promtool", ["check", "metrics"], { input: own.join(""), stdio: "pipe" });
  const { panels } = JSON.parse(readFileSync(dashboardPath, "utf8"));
  const rules = panels
    .flatMap((panel: any) => panel.targets ?? [])
    .map(({ expr }: any, i: number) => ({ record: `panel:${i}`, expr: expr.replaceAll("$__rate_interval", "5m") }));
  // From a file: Debian's promtool reads no rules from standard input.
  const directory = mkdtempSync(join(tmpdir(), "ingest-rules-"));
  try {
    const path = join(directory, "dashboard.json");
    writeFileSync(path, JSON.stringify({ groups: [{ name: "dashboard", rules }] }));
    execFileSync("promtool", ["check", "rules", "--lint=none", path], { stdio: "pipe" });
  } finally {
    rmSync(directory, { recursive: true });
  }
});
if (!promtool) console.log("promtool is not on the PATH: the rules were not checked with it");
