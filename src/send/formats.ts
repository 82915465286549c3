export const sourceFormats = ["ndjson", "csv"] as const;
export type SourceFormat = (typeof sourceFormats)[number];
