import { Presets, SingleBar } from "cli-progress";
import type { Progress } from "./send.ts";

export interface ProgressView {
  show(progress: Progress): void;
  end(): void;
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
  const rateOf = ({ accepted, rejected }: Progress) =>
    Math.round((accepted + rejected) / Math.max(0.001, (options.now() - startedMs) / 1000));
  return options.output.isTTY ? bar(options, rateOf) : lines(options, rateOf);
}

type Rate = (progress: Progress) => number;

function bar({ totalBytes, output }: ProgressOptions, rateOf: Rate): ProgressView {
  const counts = "{accepted} accepted, {rejected} rejected, {rate}/s";
  const format = totalBytes === undefined ? counts : `{bar} {percentage}% | ${counts} | {eta_formatted} left`;
  const view = new SingleBar({ format, stream: output, hideCursor: true, etaBuffer: 50 }, Presets.shades_classic);
  const counted = { accepted: 0, rejected: 0, rate: 0 };
  view.start(totalBytes ?? 1, 0, counted);
  return {
    show(progress) {
      const { accepted, rejected, bytes } = progress;
      view.update(Math.min(bytes, totalBytes ?? 0), { accepted, rejected, rate: rateOf(progress) });
    },
    end: () => view.stop(),
  };
}

function lines({ totalBytes, say, now }: ProgressOptions, rateOf: Rate): ProgressView {
  let saidAtMs = now();
  return {
    show(progress) {
      if (now() - saidAtMs < lineEveryMs) return;
      saidAtMs = now();
      const share = totalBytes === undefined ? "" : `, ${Math.floor((100 * progress.bytes) / totalBytes)} %`;
      say(`${progress.accepted} accepted, ${progress.rejected} rejected, ${rateOf(progress)}/s${share}`);
    },
    end() {},
  };
}
