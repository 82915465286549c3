import { X509Certificate } from "node:crypto";
import { readFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { createSecureContext, type SecureContextOptions, type Server as TlsServer, type TlsOptions } from "node:tls";

/**
 * What every TLS listener offers. TLS 1.2 only with forward secrecy: a thief of the key cannot read what was said before.
 * These are the suites of Mozilla's intermediate recommendation that work without parameters of our own.
 */
const tlsOptions = {
  minVersion: "TLSv1.2",
  honorCipherOrder: true,
  ciphers: [
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_AES_128_GCM_SHA256",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
  ].join(":"),
} as const satisfies SecureContextOptions & { honorCipherOrder: boolean };

/** PEM texts. */
export interface TlsFiles {
  readonly cert: string;
  readonly key: string;
  /** Authorities that sign the certificates of callers. Default: callers need no certificate. */
  readonly clientCa?: string | undefined;
}

export interface CertificateOptions {
  readonly certPath: string;
  readonly keyPath: string;
  readonly clientCaPath?: string | undefined;
  /** Default: TLS 1.2. */
  readonly minVersion?: "TLSv1.2" | "TLSv1.3" | undefined;
  /** Called once for each pair of files that cannot be used. The old pair stays in use. */
  readonly onError: (error: Error) => void;
  /** Called when a new pair is in use. */
  readonly onRenewed?: () => void;
  /** Interval between two reads of the files, in milliseconds. Default: ten seconds. */
  readonly everyMs?: number;
}

/**
 * A certificate with its key, kept up to date with their files. It reads the files regularly instead of watching them.
 * A renewal may write them in place, rename them, or replace a link several folders above, as Kubernetes does.
 */
export class Certificate {
  readonly #options: CertificateOptions;
  /** The listeners, and whether each asks callers for a certificate. */
  readonly #servers = new Map<TlsServer, boolean>();
  readonly #timer: NodeJS.Timeout;
  #current: TlsFiles;
  /** The content of the last read, usable or not. */
  #seen: TlsFiles;
  /** Why the last read failed. */
  #unread: string | undefined;

  /** @throws when a file cannot be read, or the files cannot be used together. */
  constructor(options: CertificateOptions) {
    this.#options = options;
    const { certPath, keyPath, clientCaPath, everyMs = 10_000 } = options;
    const read = (path: string) => readFileSync(path, "utf8");
    this.#current = {
      cert: read(certPath),
      key: read(keyPath),
      clientCa: clientCaPath === undefined ? undefined : read(clientCaPath),
    };
    this.#seen = this.#current;
    this.#check(this.#current);
    this.#timer = setInterval(() => void this.#look(), everyMs);
    this.#timer.unref();
  }

  /** The options of a new listener. `asksCallers`: callers need a certificate, if there are authorities for theirs. */
  options(asksCallers: boolean): TlsOptions {
    return tlsOptionsOf(this.#current, asksCallers, this.#options.minVersion);
  }

  /** New connections of the server use the newest files; open ones keep theirs. */
  serves(server: TlsServer, asksCallers: boolean): void {
    this.#servers.set(server, asksCallers);
    server.once("close", () => this.#servers.delete(server));
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    const { certPath, keyPath, clientCaPath, onError, onRenewed } = this.#options;
    const read = async (path: string | undefined) => (path === undefined ? undefined : readFile(path, "utf8"));
    try {
      const [cert = "", key = "", clientCa] = await Promise.all([certPath, keyPath, clientCaPath].map(read));
      if (cert === this.#seen.cert && key === this.#seen.key && clientCa === this.#seen.clientCa) return;
      this.#seen = { cert, key, clientCa };
      this.#check(this.#seen);
      this.#current = this.#seen;
      for (const [server, asksCallers] of this.#servers) server.setSecureContext(this.options(asksCallers));
      onRenewed?.();
      this.#unread = undefined;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const isUnread = code?.startsWith("E") === true && !code.startsWith("ERR_");
      if (isUnread && this.#unread === message) return;
      this.#unread = isUnread ? message : undefined;
      // A renewal may have written only one of the files. The next read gets the others.
      onError(new Error("The new files of TLS_* cannot be used; the old ones stay in use.", { cause: error }));
    }
  }

  /** @throws when the files cannot be used together. */
  #check(files: TlsFiles): void {
    createSecureContext(tlsOptionsOf(files, true));
    // OpenSSL reads a text without a certificate as an empty list.
    if (files.clientCa !== undefined) new X509Certificate(files.clientCa);
  }
}

/** The options of a listener for the files. `asksCallers`: callers need a certificate, if there are authorities for theirs. */
export const tlsOptionsOf = (
  { cert, key, clientCa }: TlsFiles,
  asksCallers: boolean,
  minVersion: CertificateOptions["minVersion"] = tlsOptions.minVersion,
): TlsOptions => ({
  ...tlsOptions,
  minVersion,
  cert,
  key,
  ...(asksCallers && clientCa !== undefined ? { ca: clientCa, requestCert: true, rejectUnauthorized: true } : {}),
});
