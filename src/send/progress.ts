import { Presets, SingleBar } from "cli-progress";
import { escapeControls } from "../terminal.ts";

export interface ProgressView {
  /** @param bytes of the total. */
  show(counts: string, bytes?: number): void;
  /** Shows why the run waits, until there is progress. */
  wait(trouble: string, retry: number): void;
  end(isComplete: boolean): void;
}

export interface ProgressOptions {
  /** Undefined if unknown. */
  readonly totalBytes?: number | undefined;
  readonly output: NodeJS.WriteStream;
  readonly now: () => number;
  /** Prints one line if the output is not a terminal. */
  readonly say: (line: string) => void;
}

const lineEveryMs = 5_000;

/** Shows the counts on a terminal, with a bar and the time left if the total is known; a line every few seconds elsewhere. */
export const createProgressView = (options: ProgressOptions): ProgressView =>
  options.output.isTTY ? bar(options) : lines(options);

/** The bar writes to the terminal by itself, and the trouble may be a text of the service. */
const waiting = (trouble: string, retry: number) => escapeControls(`waiting: ${trouble}, retry ${retry}`);

function bar({ totalBytes, output }: ProgressOptions): ProgressView {
  const format =
    totalBytes === undefined ? "{counts}{wait}" : "{bar} {percentage}% | {counts} | {eta_formatted} left{wait}";
  const view = new SingleBar({ format, stream: output, hideCursor: true, etaBuffer: 50 }, Presets.shades_classic);
  // A signal may end the process first. The terminal must get its cursor back.
  const stop = () => view.stop();
  process.once("exit", stop);
  view.start(totalBytes ?? 1, 0, { counts: "", wait: "" });
  return {
    show: (counts, bytes = 0) => view.update(Math.min(bytes, totalBytes ?? 0), { counts, wait: "" }),
    wait: (trouble, retry) => view.update({ wait: ` | ${waiting(trouble, retry)}` }),
    end(isComplete) {
      // Empty lines at the end of the file are in no batch, so they were not counted.
      if (isComplete) view.update(totalBytes ?? 1, { wait: "" });
      stop();
      process.off("exit", stop);
    },
  };
}

function lines({ totalBytes, say, now }: ProgressOptions): ProgressView {
  let saidAtMs = now();
  const sayNowAndThen = (line: string) => {
    if (now() - saidAtMs < lineEveryMs) return;
    saidAtMs = now();
    say(line);
  };
  let isWaiting = false;
  return {
    show(counts, bytes = 0) {
      isWaiting = false;
      sayNowAndThen(totalBytes === undefined ? counts : `${counts}, ${Math.floor((100 * bytes) / totalBytes)} %`);
    },
    wait(trouble, retry) {
      // Report the first time at once, while the user still watches.
      if (!isWaiting) saidAtMs = now() - lineEveryMs;
      isWaiting = true;
      sayNowAndThen(waiting(trouble, retry));
    },
    end() {},
  };
}
