import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { listenTrouble } from "../addresses.ts";
import { type Config, ConfigError } from "../config.ts";
import { note } from "../terminal.ts";
import { exitCodes } from "./exit.ts";

/** Otherwise `npm start -- --port 3000` would silently serve on another port. */
export function refuseArguments(args: readonly string[]): void {
  if (args.length === 0) return;
  note(`'${args.join(" ")}' is not understood: settings are environment variables, as in PORT=3000 npm start.`);
  process.exit(exitCodes.usage.code);
}

/**
 * Finds what would keep the service from listening, before the database starts.
 * @throws ConfigError with one sentence that says what to do.
 */
export async function checkListener(config: Config): Promise<void> {
  checkTls(config);
  await checkPort(config);
}

function checkTls({ TLS_CERT, TLS_KEY, TLS_CLIENT_CA }: Config): void {
  if (TLS_CERT === undefined || TLS_KEY === undefined) return;
  const cert = read("TLS_CERT", TLS_CERT);
  const key = read("TLS_KEY", TLS_KEY);
  if (!isCertificate(cert) && isCertificate(key) && isKey(cert)) {
    throw new ConfigError("TLS_CERT and TLS_KEY are swapped: TLS_CERT names the key, and TLS_KEY the certificate.");
  }
  const certificate = parsed("TLS_CERT", TLS_CERT, "no certificate in PEM", () => new X509Certificate(cert));
  const isEncrypted = /ENCRYPTED/.test(key);
  const what = isEncrypted ? "a key that asks for a passphrase; store it without one" : "no private key in PEM";
  const privateKey: KeyObject = parsed("TLS_KEY", TLS_KEY, what, () => createPrivateKey(key));
  if (!certificate.checkPrivateKey(privateKey)) {
    throw new ConfigError(`TLS_KEY '${TLS_KEY}' is not the key of the first certificate in TLS_CERT '${TLS_CERT}'.`);
  }
  if (TLS_CLIENT_CA === undefined) return;
  const clientCa = read("TLS_CLIENT_CA", TLS_CLIENT_CA);
  parsed("TLS_CLIENT_CA", TLS_CLIENT_CA, "no certificate in PEM", () => new X509Certificate(clientCa));
}

const isCertificate = (pem: string) => pem.includes("-----BEGIN CERTIFICATE-----");
const isKey = (pem: string) => /-----BEGIN [A-Z ]*PRIVATE KEY-----/.test(pem);

function parsed<T>(name: string, path: string, what: string, parse: () => T): T {
  try {
    return parse();
  } catch (error) {
    throw new ConfigError(`${name} '${path}' holds ${what}.`, { cause: error });
  }
}

function read(name: string, path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reasons: Readonly<Record<string, string>> = {
      ENOENT: "there is no such file",
      EACCES: "the process may not read it",
      EISDIR: "it is a directory",
    };
    throw new ConfigError(`${name} '${path}' cannot be read: ${reasons[code ?? ""] ?? code}.`, { cause: error });
  }
}

/** Listens for a moment. Another process may still take the port later; the listener then reports it. */
async function checkPort({ HOST: host, PORT: port }: Config): Promise<void> {
  const server = createServer();
  try {
    server.listen({ host, port, exclusive: true });
    await once(server, "listening");
  } catch (error) {
    throw new ConfigError(listenTrouble(error, { HOST: host, PORT: port }) ?? (error as Error).message, {
      cause: error,
    });
  } finally {
    server.close();
  }
}
