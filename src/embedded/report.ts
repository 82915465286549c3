export type Environment = Readonly<Record<string, string | undefined>>;
/**
 * What a program of ours needs of the environment, and none of the secrets in it.
 * @param more names that this program needs too.
 */
export function withoutSecrets(env: Environment, more?: RegExp): Environment {
  const needed = /^(PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|GLIBC_TUNABLES)$/;
  return Object.fromEntries(Object.entries(env).filter(([name]) => needed.test(name) || more?.test(name)));
}

/** Gets a line for people about what is going on. */
export type Report = (line: string) => void;
