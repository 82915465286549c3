import { existsSync, readFileSync } from "node:fs";

/** An installed package: its licence, and whether it runs an install script. */
export interface Dependency {
  readonly name: string;
  readonly version: string;
  readonly licence: string;
  readonly hasInstallScript: boolean;
}

/** Licences that require only their notice. */
export const permissive = ["0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "BlueOak-1.0.0"];

/** The dependencies for production, from the lock file: without development-only ones and links in this repository. */
export function productionDependencies(): Dependency[] {
  const { packages } = JSON.parse(readFileSync("package-lock.json", "utf8")) as {
    packages: Record<string, LockedPackage>;
  };
  return Object.entries(packages)
    .filter(([path, { dev, devOptional, link }]) => path.startsWith("node_modules/") && !dev && !devOptional && !link)
    .map(([path, locked]) => ({
      name: path.replace(/^.*node_modules\//, ""),
      version: locked.version ?? "",
      licence: locked.license ?? licenceOf(path),
      hasInstallScript: locked.hasInstallScript === true,
    }))
    .sort((a, b) => a.name.localeCompare(b.name, "en"));
}

interface LockedPackage {
  readonly version?: string;
  readonly license?: string;
  readonly dev?: boolean;
  readonly devOptional?: boolean;
  readonly link?: boolean;
  readonly hasInstallScript?: boolean;
}

/** As in its package.json, sometimes in an old form. */
function licenceOf(path: string): string {
  if (!existsSync(`${path}/package.json`)) return "unknown";
  const { license, licenses } = JSON.parse(readFileSync(`${path}/package.json`, "utf8")) as {
    license?: string | { type: string };
    licenses?: { type: string }[];
  };
  return typeof license === "string" ? license : (license?.type ?? licenses?.[0]?.type ?? "unknown");
}

if (import.meta.main) {
  for (const { name, version, licence } of productionDependencies()) console.log(`${licence}\t${name}@${version}`);
}
