import { readFile } from "node:fs/promises";
import { readFileSync } from "node:fs";
import { createSecureContext, type SecureContextOptions, type Server as TlsServer } from "node:tls";

/**
 * What every TLS listener offers. TLS 1.2 only with forward secrecy: whoever steals the key later reads nothing that was
 * said before. These are the suites of Mozilla's intermediate recommendation that work without parameters of our own.
 */
export const tlsOptions = {
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

/** In PEM. */
interface KeyPair {
  readonly cert: string;
  readonly key: string;
}

export interface CertificateOptions {
  readonly certPath: string;
  readonly keyPath: string;
  /** Told once of each pair of files that cannot be used; the pair before stays in use. */
  readonly onError: (error: Error) => void;
  /** Told of each new pair that is in use from now on. */
  readonly onRenewed?: () => void;
  /** Time between two looks at the files, in milliseconds; default ten seconds. */
  readonly everyMs?: number;
}

/**
 * A certificate with its key, which follows their files. The files are read again and again, rather than watched: what
 * renews them may write them in place, rename them, or swap a link several folders above, as Kubernetes does.
 */
export class Certificate {
  readonly #options: CertificateOptions;
  readonly #servers = new Set<TlsServer>();
  readonly #timer: NodeJS.Timeout;
  #current: KeyPair;
  /** The pair that was read last, be it of use or not. */
  #seen: KeyPair;
  /** Why the files could not be read at the last look. */
  #unread: string | undefined;

  /** @throws when a file cannot be read or the two make no certificate with its key. */
  constructor(options: CertificateOptions) {
    this.#options = options;
    const { certPath, keyPath, everyMs = 10_000 } = options;
    this.#current = checked({ cert: readFileSync(certPath, "utf8"), key: readFileSync(keyPath, "utf8") });
    this.#seen = this.#current;
    this.#timer = setInterval(() => void this.#look(), everyMs);
    this.#timer.unref();
  }

  /** What a listener begins with. */
  get current(): KeyPair {
    return this.#current;
  }

  /** New connections of the server get the newest certificate; those that are open keep theirs. */
  serves(server: TlsServer): void {
    this.#servers.add(server);
    server.once("close", () => this.#servers.delete(server));
  }

  stop(): void {
    clearInterval(this.#timer);
  }

  async #look(): Promise<void> {
    const { certPath, keyPath, onError, onRenewed } = this.#options;
    try {
      const [cert, key] = await Promise.all([readFile(certPath, "utf8"), readFile(keyPath, "utf8")]);
      if (cert === this.#seen.cert && key === this.#seen.key) return;
      this.#seen = { cert, key };
      this.#current = checked(this.#seen);
      for (const server of this.#servers) server.setSecureContext({ ...tlsOptions, ...this.#current });
      onRenewed?.();
      this.#unread = undefined;
    } catch (error) {
      const { code, message } = error as NodeJS.ErrnoException;
      const isUnread = code?.startsWith("E") === true && !code.startsWith("ERR_");
      if (isUnread && this.#unread === message) return;
      this.#unread = isUnread ? message : undefined;
      // While one of the two is written the other may be the old one: the next look takes both.
      onError(
        new Error("The new files of TLS_CERT and TLS_KEY are of no use; the old ones stay in use.", { cause: error }),
      );
    }
  }
}

function checked(pair: KeyPair): KeyPair {
  createSecureContext({ ...tlsOptions, ...pair });
  return pair;
}
