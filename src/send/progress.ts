import { Presets, SingleBar } from "cli-progress";
import type { Progress } from "./send.ts";

export interface ProgressView {
  show(progress: Progress): void;
  /** The service cannot be used just now, and why; shown until there is progress. */
  wait(trouble: string, retry: number): void;
  end(isComplete: boolean): void;
}

export interface ProgressOptions {
  /** Of the file; undefined where that is not known. */
  readonly totalBytes: number | undefined;
  readonly output: NodeJS.WriteStream;
  readonly now: () => number;
  /** One line, where the output is no terminal. */
  readonly say: (line: string) => void;
}

/** Time between two lines where the output is no terminal, in milliseconds. */
const lineEveryMs = 5_000;

/** On a terminal a bar with rate and time left, elsewhere a line now and then. */
export function createProgressView(options: ProgressOptions): ProgressView {
  const startedMs = options.now();
  const rateOf = ({ accepted }: Progress) => Math.round(accepted / Math.max(0.001, (options.now() - startedMs) / 1000));
  return options.output.isTTY ? bar(options, rateOf) : lines(options, rateOf);
}

type Rate = (progress: Progress) => number;

const waiting = (trouble: string, retry: number) => `waiting: ${trouble}, retry ${retry}`;

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
      // Empty lines at the end of the file belong to no batch.
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
      // The first time at once: whoever started the command by mistake is still looking.
      if (!isWaiting) saidAtMs = now() - lineEveryMs;
      isWaiting = true;
      sayNowAndThen(() => waiting(trouble, retry));
    },
    end() {},
  };
}
