import { ConfigError } from "../../config.ts";
import { ExportMistake, exportTimeline } from "../../send/export.ts";
import { createProgressView } from "../../send/progress.ts";
import { watchSignals } from "../../serve/signals.ts";
import { note } from "../../terminal.ts";
import { output, type OutputFlags } from "../output.ts";
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
  // A signal ends the process at once. The view then restores the terminal.
  const signals = watchSignals();
  const view = createProgressView({ output: process.stderr, now: Date.now, say: note });
  const rows = await exportTimeline({
    baseUrl: url,
    key,
    kind: snapshots === true ? "snapshot" : "event",
    filters: { workerId: worker, type, startTime: start?.toISOString(), endTime: end?.toISOString() },
    path,
    giveUpSeconds: giveUp,
    onProgress: (lines) => view.show(`${lines} lines written`),
    onTrouble: (trouble, retry) => view.wait(trouble, retry),
  })
    .finally(() => {
      view.end(true);
      signals.release();
    })
    .catch((error: unknown) => {
      throw error instanceof ExportMistake ? new ConfigError(error.message) : error;
    });
  if (path === undefined) return note(`${rows} lines written`);
  output({ file, rows }, flags, () => note(`${rows} lines written to ${file}`));
}
