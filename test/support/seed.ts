const seedMax = 2 ** 32 - 1;

/**
 * The seed of a run: its first argument, or a random one.
 * @throws if it is not an integer from 0 to 4294967295.
 */
export function seedOf(argument: string | undefined): number {
  if (argument === undefined) return Math.floor(Math.random() * seedMax);
  const seed = Number(argument);
  if (/^\d+$/.test(argument) && seed <= seedMax) return seed;
  throw new Error(`The seed is ${JSON.stringify(argument)}. Give an integer from 0 to ${seedMax}, or none.`);
}
