import { execFileSync } from "node:child_process";
import { mkdtemp, readFile, rm, symlink } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { measureRow, type Timing } from "./measure.ts";
import { contestant, type Workload, workloads } from "./rows.ts";
import { membersOf, openStage, type Stage } from "./stage.ts";
import { circumstances, heading, lines, writeSection } from "./table.ts";

const usage = `npm run bench:compare -- REF [--only PATTERN] [--members N] [--rounds N] [--seconds S] [--write]
  REF              the commit to compare with: its service runs beside this one, from a copy of its own
  --only PATTERN   rows whose name matches the regular expression
  --members N      members of each version's replica set: 1 (default) or 3
  --rounds N       rounds of both services (default 5), one after the other
  --seconds S      length of a round (default 3)
  --write          put the table into docs/performance.md, between the marks "compare REF"`;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    only: { type: "string", default: "" },
    members: { type: "string", default: "1" },
    rounds: { type: "string", default: "5" },
    seconds: { type: "string", default: "3" },
    write: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
const [ref] = positionals;
if (values.help || ref === undefined || positionals.length > 1) {
  console.log(usage);
  process.exit(values.help ? 0 : 2);
}
const members = membersOf(values.members);
const timing: Timing = { rounds: Number(values.rounds), seconds: Number(values.seconds), warmSeconds: 1 };
const pattern = new RegExp(values.only, "i");

const root = new URL("../../", import.meta.url).pathname;
const git = (...args: readonly string[]) => execFileSync("git", args, { cwd: root, encoding: "utf8" }).trim();
let commit: string;
try {
  commit = git("rev-parse", "--verify", "--quiet", "--short", `${ref}^{commit}`);
} catch {
  console.error(`'${ref}' is no commit of this checkout.`);
  process.exit(2);
}
const changes = git("status", "--porcelain", "--", "src", "package-lock.json") === "" ? "" : " with changes";

const checkout = await mkdtemp(join(tmpdir(), "ingest-compare-"));
try {
  await layOut(checkout);
  process.exitCode = await compare();
} finally {
  await rm(checkout, { recursive: true, force: true });
}

/** Checks out the commit with everything it needs to run. The bench's own Node runs it. */
async function layOut(directory: string): Promise<void> {
  const archive = execFileSync("git", ["archive", commit], { cwd: root, maxBuffer: 2 ** 28 });
  execFileSync("tar", ["-x", "-C", directory], { input: archive });
  const [theirs, ours] = await Promise.all(
    [directory, root].map((one) => readFile(join(one, "package-lock.json"), "utf8")),
  );
  if (theirs === ours) await symlink(join(root, "node_modules"), join(directory, "node_modules"));
  else {
    const install = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
    execFileSync("npm", install, { cwd: directory, stdio: ["ignore", "ignore", "inherit"] });
  }
}

/** Measures every row; returns the exit code. Each version has its own mongod, and so what it costs that one. */
async function compare(): Promise<number> {
  const [here, there] = await Promise.all([openStage(members), openStage(members)]);
  const both: Pick<Stage, "clear" | "stored"> = {
    clear: async () => void (await Promise.all([here.clear(), there.clear()])),
    stored: (database) => (database === "other" ? there : here).stored(database),
  };
  try {
    const [now, then] = await Promise.all([here.startService(), there.startOther(checkout, "other")]);
    const { version } = await here.client.db("admin").command({ buildInfo: 1 });
    const note = `${circumstances(timing, version, members)}; the database of each version is its own`;
    const table = [heading()];
    console.log(`${note}\n\n${heading()}`);
    let failed = 0;
    const loads = workloads(there.authorization);
    for (const [i, workload] of workloads(here.authorization).entries()) {
      if (!pattern.test(workload.name)) continue;
      const row = {
        name: workload.name,
        events: workload.events,
        bars: [],
        contestants: [
          contestant("ingest", `${git("rev-parse", "--short", "HEAD")}${changes}`, now, workload, "ingest"),
          contestant("peer", commit, then, loads[i] as Workload, "other"),
        ],
      };
      const results = await measureRow(both, row, timing);
      failed += results.filter(({ invalid }) => invalid !== undefined).length;
      const measured = lines(row, results);
      console.log(measured.join("\n"));
      table.push(...measured);
    }
    const command = `npm run bench:compare -- ${process.argv.slice(2).join(" ")}`;
    const section = members === 1 ? `compare ${ref}` : `compare ${ref} members ${members}`;
    if (values.write) await writeSection(section, `\`${command}\`: ${note}.\n\n${table.join("\n")}`);
    return failed === 0 ? 0 : 1;
  } finally {
    await Promise.all([here.close(), there.close()]);
  }
}
