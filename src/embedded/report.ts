export type Environment = Readonly<Record<string, string | undefined>>;
/** Gets a line for people about what is going on. */
export type Report = (line: string) => void;
