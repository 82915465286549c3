import { parseArgs } from "node:util";
import type { Timing } from "./measure.ts";
import { measureRow } from "./measure.ts";
import { buildRows } from "./rows.ts";
import { openStage } from "./stage.ts";
import { circumstances, heading, lines, writeSection } from "./table.ts";

const usage = `npm run bench -- [--quick] [--only PATTERN] [--rounds N] [--seconds S] [--write]
  --quick          one short round of every row: about 90 s
  --only PATTERN   rows whose name matches the regular expression
  --rounds N       rounds of every program (default 3)
  --seconds S      length of a round (default 4)
  --write          put the table into docs/performance.md, between its marks`;

const { values } = parseArgs({
  options: {
    quick: { type: "boolean", default: false },
    only: { type: "string", default: "" },
    rounds: { type: "string" },
    seconds: { type: "string" },
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

const stage = await openStage();
const table: string[] = [heading()];
let failed = 0;
try {
  const { version } = await stage.client.db("admin").command({ buildInfo: 1 });
  const note = circumstances(timing, version);
  console.log(`${note}\n\n${heading()}`);
  for (const row of (await buildRows(stage)).filter(({ name }) => pattern.test(name))) {
    const results = await measureRow(stage, row, timing);
    failed += results.filter(({ invalid }) => invalid !== undefined).length;
    const measured = lines(row, results);
    console.log(measured.join("\n"));
    table.push(...measured);
  }
  const command = `npm run bench${process.argv.length > 2 ? ` -- ${process.argv.slice(2).join(" ")}` : ""}`;
  if (values.write) await writeSection("bench", `\`${command}\`: ${note}.\n\n${table.join("\n")}`);
} finally {
  await stage.close();
}
process.exitCode = failed === 0 ? 0 : 1;
