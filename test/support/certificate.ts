import { generate } from "selfsigned";

export interface Certificate {
  /** PEM. Self-signed, so it is also the client's authority. */
  readonly cert: string;
  readonly key: string;
}

/** A new certificate for `localhost`. */
export async function createCertificate(): Promise<Certificate> {
  const { cert, private: key } = await generate([{ name: "commonName", value: "localhost" }], {
    extensions: [{ name: "subjectAltName", altNames: [{ type: 2, value: "localhost" }] }],
  });
  return { cert, key };
}
