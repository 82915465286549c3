export type Environment = Readonly<Record<string, string | undefined>>;
/**
 * The environment for a child process, without our secrets.
 * @param more names of further variables that it needs.
 */
export function withoutSecrets(env: Environment, more?: RegExp): Environment {
  const needed = /^(PATH|HOME|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|DYLD_LIBRARY_PATH|GLIBC_TUNABLES)$/;
  return Object.fromEntries(Object.entries(env).filter(([name]) => needed.test(name) || more?.test(name)));
}

export type Report = (line: string) => void;
