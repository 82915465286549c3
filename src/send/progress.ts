import { Presets, SingleBar } from "cli-progress";
import { escapeControls } from "../terminal.ts";
import type { Progress } from "./send.ts";

export interface ProgressView {
  show(progress: Progress): void;
  /** Shows why the run waits, until there is progress. */
  wait(trouble: string, retry: number): void;
  end(isComplete: boolean): void;
}

export interface ProgressOptions {
  /** Undefined if unknown. */
  readonly totalBytes: number | undefined;
  readonly output: NodeJS.WriteStream;
  readonly now: () => number;
  /** Prints one line if the output is not a terminal. */
  readonly say: (line: string) => void;
}

const lineEveryMs = 5_000;

/** Shows a bar with rate and time left on a terminal, and a line every few seconds elsewhere. */
export function createProgressView(options: ProgressOptions): ProgressView {
  const startedMs = options.now();
  const rateOf = ({ accepted }: Progress) => Math.round(accepted / Math.max(0.001, (options.now() - startedMs) / 1000));
  return options.output.isTTY ? bar(options, rateOf) : lines(options, rateOf);
}

type Rate = (progress: Progress) => number;

/** The bar writes to the terminal by itself, and the trouble may be a text of the service. */
export const waiting = (trouble: string, retry: number) => escapeControls(`waiting: ${trouble}, retry ${retry}`);

function bar({ totalBytes, output }: ProgressOptions, rateOf: Rate): ProgressView {
  const counts = "{accepted} accepted, {rejected} rejected, {rate}/s";
  const format =
    totalBytes === undefined ? `${counts}{wait}` : `{bar} {percentage}% | ${counts} | {eta_formatted} left{wait}`;
  const view = new SingleBar({ format, stream: output, hideCursor: true, etaBuffer: 50 }, Presets.shades_classic);
  const counted = { accepted: 0, rejected: 0, rate: 0, wait: "" };
  view.start(totalBytes ?? 1, 0, counted);
  return {
    show(progress) {
      const { accepted, rejected, bytes } = progress;
      view.update(Math.min(bytes, totalBytes ?? 0), { accepted, rejected, rate: rateOf(progress), wait: "" });
    },
    wait: (trouble, retry) => view.update({ wait: ` | ${waiting(trouble, retry)}` }),
    end(isComplete) {
      // Empty lines at the end of the file are in no batch, so they were not counted.
      if (isComplete) view.update(totalBytes ?? 1, { wait: "" });
      view.stop();
    },
  };
}

function lines({ totalBytes, say, now }: ProgressOptions, rateOf: Rate): ProgressView {
  let saidAtMs = now();
  const sayNowAndThen = (line: () => string) => {
    if (now() - saidAtMs < lineEveryMs) return;
    saidAtMs = now();
    say(line());
  };
  let isWaiting = false;
  return {
    show(progress) {
      isWaiting = false;
      const share = totalBytes === undefined ? "" : `, ${Math.floor((100 * progress.bytes) / totalBytes)} %`;
      const { accepted, rejected } = progress;
      sayNowAndThen(() => `${accepted} accepted, ${rejected} rejected, ${rateOf(progress)}/s${share}`);
    },
    wait(trouble, retry) {
      // Report the first time at once, while the user still watches.
      if (!isWaiting) saidAtMs = now() - lineEveryMs;
      isWaiting = true;
      sayNowAndThen(() => waiting(trouble, retry));
    },
    end() {},
  };
}
