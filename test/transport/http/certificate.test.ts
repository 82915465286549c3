import { mkdtempSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { connect, type ConnectionOptions, type TLSSocket } from "node:tls";
import { once } from "node:events";
import { buffer } from "node:stream/consumers";
import { expect, onTestFinished, test } from "vitest";
import { Certificate, type CertificateOptions } from "../../../src/transport/http/certificate.ts";
import { startAdapter } from "../../support/adapter.ts";
import { createCertificate } from "../../support/certificate.ts";

const pairs = [await createCertificate(), await createCertificate()] as const;

/** A certificate that is read from files every few milliseconds. */
function ofFiles(pair: { cert: string; key: string }, options: Pick<CertificateOptions, "minVersion"> = {}, ca = "") {
  const folder = mkdtempSync(join(tmpdir(), "ingest-tls-"));
  const [certPath, keyPath, caPath] = ["cert.pem", "key.pem", "ca.pem"].map((name) => join(folder, name)) as [
    string,
    string,
    string,
  ];
  const write = (cert: string, key: string) => {
    writeFileSync(certPath, cert);
    writeFileSync(keyPath, key);
  };
  write(pair.cert, pair.key);
  writeFileSync(caPath, ca);
  const errors: Error[] = [];
  let renewals = 0;
  const certificate = new Certificate({
    certPath,
    keyPath,
    ...(ca === "" ? {} : { clientCaPath: caPath }),
    ...options,
    everyMs: 10,
    onError: (error) => errors.push(error),
    onRenewed: () => renewals++,
  });
  onTestFinished(() => {
    certificate.stop();
    rmSync(folder, { recursive: true });
  });
  return { certificate, folder, certPath, keyPath, caPath, write, errors, renewals: () => renewals };
}

async function handshake(port: number, options: ConnectionOptions = {}): Promise<TLSSocket> {
  const socket = connect({ port, host: "127.0.0.1", servername: "localhost", rejectUnauthorized: false, ...options });
  onTestFinished(() => void socket.destroy());
  await once(socket, "secureConnect");
  return socket;
}

const shown = async (port: number) =>
  `-----BEGIN CERTIFICATE-----${(await handshake(port)).getPeerX509Certificate()?.toString().split("-----")[2]}`;
const plain = (pem: string) => pem.split("-----").slice(0, 3).join("-----").replace(/\s/g, "");

test("new connections use a renewed certificate, and open ones continue", async () => {
  const files = ofFiles(pairs[0]);
  await using adapter = await startAdapter({}, { tls: files.certificate });
  expect(plain(await shown(adapter.port))).toBe(plain(pairs[0].cert));
  const open = await handshake(adapter.port);
  files.write(pairs[1].cert, pairs[1].key);
  await expect.poll(async () => plain(await shown(adapter.port)), { timeout: 20_000 }).toBe(plain(pairs[1].cert));
  open.write("GET / HTTP/1.1\r\nHost: x\r\n\r\n");
  expect(String(await once(open, "data"))).toMatch(/^HTTP\/1\.1 404/);
});

test("files that do not match leave the old certificate in use, and are reported once", async () => {
  const files = ofFiles(pairs[0]);
  await using adapter = await startAdapter({}, { tls: files.certificate });
  // As if a renewal had written one of the two.
  writeFileSync(files.certPath, pairs[1].cert);
  await expect.poll(() => files.errors.length, { timeout: 20_000 }).toBe(1);
  writeFileSync(files.certPath, "no certificate");
  await expect.poll(() => files.errors.length, { timeout: 20_000 }).toBe(2);
  rmSync(files.certPath);
  await expect.poll(() => files.errors.length, { timeout: 20_000 }).toBe(3);
  expect(plain(await shown(adapter.port))).toBe(plain(pairs[0].cert));
  expect(files.renewals()).toBe(0);
  files.write(pairs[1].cert, pairs[1].key);
  await expect.poll(files.renewals, { timeout: 20_000 }).toBeGreaterThan(0);
  expect(plain(await shown(adapter.port))).toBe(plain(pairs[1].cert));
  expect(files.errors.map(({ message }) => message).join()).not.toContain("PRIVATE");
});

test("a swapped link to a certificate is noticed, as in Kubernetes", async () => {
  const files = ofFiles(pairs[0]);
  for (const [name, { cert, key }] of [["old", pairs[0]] as const, ["new", pairs[1]] as const]) {
    writeFileSync(join(files.folder, `${name}-cert`), cert);
    writeFileSync(join(files.folder, `${name}-key`), key);
  }
  const link = (path: string, target: string) => {
    symlinkSync(target, `${path}.next`);
    renameSync(`${path}.next`, path);
  };
  link(files.certPath, "old-cert");
  link(files.keyPath, "old-key");
  await using adapter = await startAdapter({}, { tls: files.certificate });
  link(files.certPath, "new-cert");
  link(files.keyPath, "new-key");
  await expect.poll(async () => plain(await shown(adapter.port)), { timeout: 20_000 }).toBe(plain(pairs[1].cert));
});

test("TLS 1.2 has forward secrecy only, before and after a renewal", async () => {
  const files = ofFiles(pairs[0]);
  await using adapter = await startAdapter({}, { tls: files.certificate });
  const offer = (ciphers: string) =>
    handshake(adapter.port, { maxVersion: "TLSv1.2", ciphers }).then(
      (socket) => socket.getCipher().name,
      () => "refused",
    );
  for (let round = 0; round < 2; round++) {
    expect(await offer("AES128-GCM-SHA256:AES256-GCM-SHA384:AES128-SHA:AES256-SHA")).toBe("refused");
    expect(await offer("ECDHE-RSA-AES128-SHA:ECDHE-RSA-AES256-SHA384")).toBe("refused");
    expect(await offer("ECDHE-RSA-AES128-GCM-SHA256")).toBe("ECDHE-RSA-AES128-GCM-SHA256");
    expect((await handshake(adapter.port)).getProtocol()).toBe("TLSv1.3");
    files.write(pairs[1].cert, pairs[1].key);
    await expect.poll(files.renewals, { timeout: 20_000 }).toBeGreaterThan(0);
  }
});

test("without TLS 1.2 no connection has it, before and after a renewal", async () => {
  const files = ofFiles(pairs[0], { minVersion: "TLSv1.3" });
  await using adapter = await startAdapter({}, { tls: files.certificate });
  for (let round = 0; round < 2; round++) {
    await expect(handshake(adapter.port, { maxVersion: "TLSv1.2" })).rejects.toThrow("protocol version");
    expect((await handshake(adapter.port)).getProtocol()).toBe("TLSv1.3");
    files.write(pairs[1].cert, pairs[1].key);
    await expect.poll(files.renewals, { timeout: 20_000 }).toBeGreaterThan(0);
  }
});

test.each(["TLSv1.2", "TLSv1.3"] as const)(
  "callers need a certificate that the authorities of now have signed, over %s",
  async (maxVersion) => {
    const files = ofFiles(pairs[0], {}, pairs[1].cert);
    await using callers = await startAdapter({}, { tls: files.certificate });
    await using operators = await startAdapter({}, { tls: files.certificate, asksCallers: false });
    /** A caller learns that it is refused from the handshake, or in its place from the answer. */
    const status = async (port: number, own?: { cert: string; key: string }) => {
      const socket = await handshake(port, { maxVersion, ...own }).catch(() => undefined);
      socket?.on("error", () => {}).write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
      return socket === undefined ? "" : (await buffer(socket).catch(() => "")).toString().slice(9, 12);
    };
    const seen = async () => [
      await status(callers.port),
      await status(callers.port, pairs[0]),
      await status(callers.port, pairs[1]),
    ];
    expect(await seen()).toEqual(["", "", "404"]);
    expect(await status(operators.port)).toBe("404");
    writeFileSync(files.caPath, "no certificate");
    await expect.poll(() => files.errors.length, { timeout: 20_000 }).toBe(1);
    expect(await seen()).toEqual(["", "", "404"]);
    writeFileSync(files.caPath, pairs[0].cert);
    await expect.poll(files.renewals, { timeout: 20_000 }).toBe(1);
    expect(await seen()).toEqual(["", "404", ""]);
    expect(await status(operators.port)).toBe("404");
  },
);
