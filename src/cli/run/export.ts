import { ConfigError } from "../../config.ts";
import { ExportMistake, exportTimeline } from "../../send/export.ts";
import { waiting } from "../../send/progress.ts";
import { note } from "../../terminal.ts";
import { output, type OutputFlags } from "../output.ts";
import { createJobProgress } from "./job-progress.ts";
import { checkTarget } from "./send.ts";

export interface ExportFlags extends OutputFlags {
  url: string;
  key: string;
  snapshots?: boolean;
  worker?: string;
  type?: string;
  start?: Date;
  end?: Date;
  giveUp: number;
}

export async function exportToFile(file: string, flags: ExportFlags): Promise<void> {
  const { url, snapshots, worker, type, start, end, giveUp } = flags;
  const key = flags.key.trim();
  checkTarget(url, key);
  const path = file === "-" ? undefined : file;
  const progress = createJobProgress(Date.now);
  const rows = await exportTimeline({
    baseUrl: url,
    key,
    kind: snapshots === true ? "snapshot" : "event",
    filters: { workerId: worker, type, startTime: start?.toISOString(), endTime: end?.toISOString() },
    path,
    giveUpSeconds: giveUp,
    onProgress: (done) => progress.show({ step: "lines written", done }),
    onTrouble: (trouble, retry) => progress.show({ step: waiting(trouble, retry), done: 0 }),
  })
    .finally(() => progress.end())
    .catch((error: unknown) => {
      throw error instanceof ExportMistake ? new ConfigError(error.message) : error;
    });
  if (path === undefined) return note(`${rows} lines written`);
  output({ file, rows }, flags, () => note(`${rows} lines written to ${file}`));
}
