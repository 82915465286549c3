/** The options and the database that a connection string names; names of options in lower case. */
export interface MongodbUri {
  readonly options: ReadonlyMap<string, string>;
  /** Of the path. `admin` there only says where the user is kept, so it counts as none. */
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
  /** The only values that say what the service does anyway. */
  readonly allowed: readonly string[];
  readonly why: string;
}

const bounds: Rule = { allowed: [], why: "the service itself bounds how long it waits for the database" };
const durability: Rule = { allowed: [], why: "an accepted event is always written to a majority and journalled" };

/** Options that the service decides. It refuses another value: to ignore it would do what nobody asked for. */
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
  retrywrites: { allowed: ["true"], why: "a write must survive the change of a primary" },
};

/** Every option that contradicts the service, one sentence each; none when there is nothing wrong. */
export function problemsOfMongodbUri(uri: string): string[] {
  return [...parseMongodbUri(uri).options].flatMap(([name, value]) => {
    const rule = Object.hasOwn(decided, name) ? decided[name] : undefined;
    if (rule === undefined || rule.allowed.includes(value)) return [];
    const remedy = rule.allowed.length === 0 ? "remove it" : `remove it or make it ${rule.allowed.join(" or ")}`;
    return [`has the option ${name}, but ${rule.why}; ${remedy}`];
  });
}
