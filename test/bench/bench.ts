import { parseArgs } from "node:util";
import type { Timing } from "./measure.ts";
import { measureRow } from "./measure.ts";
import { buildRows } from "./rows.ts";
import { membersOf, openStage } from "./stage.ts";
import { circumstances, heading, lines, writeSection } from "./table.ts";

const usage = `npm run bench -- [--quick] [--only PATTERN] [--rounds N] [--seconds S] [--members N] [--write]
  --quick          one short round of every row: about 90 s
  --only PATTERN   rows whose name matches the regular expression
  --rounds N       rounds of every program (default 3)
  --seconds S      length of a round (default 4)
  --members N      members of the database's replica set: 1 (default), or 3, which measures only rows with events
  --write          put the table into docs/performance.md, between its marks`;

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    only: { type: "string", default: "" },
    rounds: { type: "string" },
    seconds: { type: "string" },
    members: { type: "string", default: "1" },
    write: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(usage);
  process.exit(0);
}
const timing: Timing = {
  rounds: Number(values.rounds ?? (values.quick ? 1 : 3)),
  seconds: Number(values.seconds ?? (values.quick ? 1 : 4)),
  warmSeconds: 1,
};
const pattern = new RegExp(values.only, "i");

const stage = await openStage(membersOf(values.members));
const table: string[] = [heading()];
let failed = 0;
try {
  const { version } = await stage.client.db("admin").command({ buildInfo: 1 });
  const note = circumstances(timing, version, stage.members);
  console.log(`${note}\n\n${heading()}`);
  for (const row of (await buildRows(stage)).filter(({ name }) => pattern.test(name))) {
    const results = await measureRow(stage, row, timing);
    failed += results.filter(({ invalid }) => invalid !== undefined).length;
    const measured = lines(row, results);
    console.log(measured.join("\n"));
    table.push(...measured);
  }
  const command = `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(" ")}` : ""}`;
  const section = stage.members === 1 ? "bench" : "bench members 3";
  if (values.write) await writeSection(section, `\`${command}\`: ${note}.\n\n${table.join("\n")}`);
} finally {
  await stage.close();
}
process.exitCode = failed === 0 ? 0 : 1;
