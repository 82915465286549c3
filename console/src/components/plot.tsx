import { useEffect, useRef } from "react";
import UPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { rangeOf } from "../figures.ts";
import { count, short } from "../format.ts";
import { text } from "../text.ts";

export interface Series {
  readonly name: string;
  /** A token of tokens.css, such as `--accent`. */
  readonly color: string;
  /** Undefined makes a gap. */
  readonly values: readonly (number | undefined)[];
}

interface PlotProps {
  readonly title: string;
  /** What the values count, such as "events". */
  readonly unit: string;
  /** The name of the first column of the table. */
  readonly by: string;
  /** One label for each value, in order. */
  readonly labels: readonly string[];
  readonly series: readonly Series[];
}

const height = 220;
/** Half the width of a letter of the axes. */
const halfLetterPx = 3.5;
const none = "–";
/** Steps of an axis that counts: half an event is none. */
const wholeSteps = Array.from({ length: 12 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();

/** Lines over time with axes and a legend, and the table behind them, which also serves the keyboard. */
export function Plot({ title, unit, by, labels, series }: PlotProps) {
  const place = useRef<HTMLDivElement>(null);
  useEffect(() => {
    const element = place.current;
    if (element === null) return undefined;
    const draw = () => {
      const style = getComputedStyle(element);
      // A canvas does not resolve light-dark(), but an element's colour does.
      const colorOf = (token: string) => {
        element.style.color = `var(${token})`;
        const { color } = getComputedStyle(element);
        element.style.color = "";
        return color;
      };
      const soft = colorOf("--text-soft");
      const line = colorOf("--line");
      const font = `12px ${style.fontFamily}`;
      const isWhole = series.every(({ values }) =>
        values.every((value) => value === undefined || Number.isInteger(value)),
      );
      const axis = { stroke: soft, font, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
      const options: UPlot.Options = {
        width: element.clientWidth,
        height,
        // Half of the last label stands beyond the plot.
        padding: [null, halfLetterPx * (labels.at(-1)?.length ?? 0), null, null],
        scales: {
          x: { time: false },
          y: { range: (_, min: number | null, max: number | null) => rangeOf(min ?? 0, max ?? 0) },
        },
        axes: [
          { ...axis, values: (_, places) => places.map((at) => (Number.isInteger(at) ? (labels[at] ?? "") : "")) },
          { ...axis, size: 56, values: (_, values) => values.map(short), ...(isWhole ? { incrs: wholeSteps } : {}) },
        ],
        series: [
          { label: by, value: (_, at) => (at === null ? none : (labels[at] ?? "")) },
          ...series.map(({ name, color, values }) => ({
            label: name,
            stroke: colorOf(color),
            width: 2,
            // A value between two gaps has no line.
            points: { show: labels.length < 40 || values.includes(undefined), size: 5 },
            value: (_: UPlot, value: number | null) => (value === null ? none : count(value)),
          })),
        ],
      };
      return new UPlot(
        options,
        [labels.map((_, i) => i), ...series.map(({ values }) => values.map((value) => value ?? null))],
        element,
      );
    };
    let plot = draw();
    const again = () => {
      plot.destroy();
      plot = draw();
    };
    const watchSize = new ResizeObserver(() => plot.setSize({ width: element.clientWidth, height }));
    watchSize.observe(element);
    const watchTheme = new MutationObserver(again);
    watchTheme.observe(document.documentElement, { attributeFilter: ["data-theme"] });
    const dark = matchMedia("(prefers-color-scheme: dark)");
    dark.addEventListener("change", again);
    return () => {
      watchSize.disconnect();
      watchTheme.disconnect();
      dark.removeEventListener("change", again);
      plot.destroy();
    };
  }, [labels, series, by]);
  return (
    <figure className="panel plot">
      <figcaption>
        <h2>{title}</h2>
        <p className="small soft">{unit}</p>
      </figcaption>
      <div ref={place} aria-hidden="true" />
      <details>
        <summary>{text.overview.table}</summary>
        <div className="scroll" tabIndex={0} role="region" aria-label={title}>
          <table>
            <thead>
              <tr>
                <th>{by}</th>
                {series.map(({ name }) => (
                  <th key={name} className="number">
                    {name}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {labels.map((label, i) => (
                // Two values may be of one minute.
                <tr key={`${i} ${label}`}>
                  <td>{label}</td>
                  {series.map(({ name, values }) => (
                    <td key={name} className="number">
                      {values[i] === undefined ? none : count(values[i])}
                    </td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </figure>
  );
}
