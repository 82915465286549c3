/** The options and the database of a connection string; option names are in lower case. */
export interface MongodbUri {
  readonly options: ReadonlyMap<string, string>;
  /** From the path. `admin` usually names only the authentication database, so it counts as none. */
  readonly database: string | undefined;
}

export function parseMongodbUri(uri: string): MongodbUri {
  const [, path = "", query = ""] = /^[a-z+]+:\/\/[^/?]*(?:\/([^?]*))?(?:\?(.*))?$/i.exec(uri) ?? [];
  const options = [...new URLSearchParams(query)].map(([name, value]) => [name.toLowerCase(), value] as const);
  return { options: new Map(options), database: path === "" || path === "admin" ? undefined : decoded(path) };
}

function decoded(path: string): string {
  try {
    return decodeURIComponent(path);
  } catch {
    return path;
  }
}

interface Rule {
  /** Values that agree with what the service does. */
  readonly allowed: readonly string[];
  readonly why: string;
}

const bounds: Rule = { allowed: [], why: "the service sets its own timeouts for the database" };
const durability: Rule = { allowed: [], why: "an accepted event is always written to a majority and journalled" };

/** Options that the service decides. It refuses other values, because the operator would expect them to work. */
const decided: Readonly<Record<string, Rule>> = {
  serverselectiontimeoutms: bounds,
  connecttimeoutms: bounds,
  sockettimeoutms: bounds,
  heartbeatfrequencyms: bounds,
  timeoutms: bounds,
  w: { ...durability, allowed: ["majority"] },
  j: { ...durability, allowed: ["true"] },
  journal: { ...durability, allowed: ["true"] },
  wtimeout: durability,
  wtimeoutms: durability,
  readpreference: { allowed: ["primary"], why: "the service reads what it has just written" },
  readpreferencetags: { allowed: [], why: "the service reads from the primary" },
  readconcernlevel: { allowed: ["local", "majority"], why: "the service chooses the read concern of each read" },
  retrywrites: { allowed: ["true"], why: "a write must survive an election" },
};

/** One sentence for each option that contradicts the service. */
export function problemsOfMongodbUri(uri: string): string[] {
  return [...parseMongodbUri(uri).options].flatMap(([name, value]) => {
    const rule = Object.hasOwn(decided, name) ? decided[name] : undefined;
    if (rule === undefined || rule.allowed.includes(value)) return [];
    const remedy = rule.allowed.length === 0 ? "remove it" : `remove it or make it ${rule.allowed.join(" or ")}`;
    return [`has the option ${name}, but ${rule.why}; ${remedy}`];
  });
}
