import { Presets, SingleBar } from "cli-progress";
import type { JobProgress } from "../../store/worker-jobs.ts";
import { note } from "../../terminal.ts";

/** Milliseconds between two lines if standard error is not a terminal. */
const lineEveryMs = 5_000;

export interface JobProgressView {
  show(progress: JobProgress): void;
  end(): void;
}

/** Shows a bar on a terminal, and a line every few seconds elsewhere. */
export function createJobProgress(now: () => number): JobProgressView {
  return process.stderr.isTTY ? bar() : lines(now);
}

function bar(): JobProgressView {
  const format = "{bar} {percentage}% | {step}{count}";
  const view = new SingleBar({ format, stream: process.stderr, hideCursor: true }, Presets.shades_classic);
  view.start(1, 0, { step: "", count: "" });
  return {
    show({ step, done, total }) {
      view.setTotal(Math.max(total ?? 1, 1));
      view.update(done, { step, count: countOf({ done, total }) });
    },
    end: () => view.stop(),
  };
}

function lines(now: () => number): JobProgressView {
  let saidAtMs = now();
  return {
    show({ step, done, total }) {
      if (now() - saidAtMs < lineEveryMs) return;
      saidAtMs = now();
      note(`${step}${countOf({ done, total })}`);
    },
    end() {},
  };
}

function countOf({ done, total }: Pick<JobProgress, "done" | "total">): string {
  if (total !== undefined) return `: ${done} of ${total}`;
  return done === 0 ? " …" : `: ${done}`;
}
