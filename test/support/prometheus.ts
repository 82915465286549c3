/** Samples in Prometheus' text format: the value by `name{label="value",…}`, with labels in their order. */
export type Samples = ReadonlyMap<string, number>;

export function parseSamples(text: string): Samples {
  const samples = new Map<string, number>();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const at = line.lastIndexOf(" ");
    samples.set(line.slice(0, at), Number(line.slice(at + 1)));
  }
  return samples;
}

/** The metrics that a service shows to operators. */
export async function scrape(adminUrl: string): Promise<Samples> {
  return parseSamples(await (await fetch(`${adminUrl}/metrics`)).text());
}

/** Sum of the samples of a name whose labels include all the given ones. */
export function sumOf(samples: Samples, name: string, labels: Readonly<Record<string, string>> = {}): number {
  let sum = 0;
  for (const [series, value] of samples) {
    if (series.replace(/\{.*$/, "") !== name) continue;
    if (Object.entries(labels).every(([label, wanted]) => series.includes(`${label}="${wanted}"`))) sum += value;
  }
  return sum;
}
