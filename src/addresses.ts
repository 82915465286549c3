import { BlockList, isIP } from "node:net";

/**
 * Returns a filter that matches IP addresses against addresses and CIDR blocks.
 * @throws RangeError for an entry that is neither.
 */
export function createAddressFilter(entries: readonly string[]): (address: string) => boolean {
  const list = new BlockList();
  for (const entry of entries) {
    const [address = "", bits, ...rest] = entry.split("/");
    const bitsMax = isIP(address) === 6 ? 128 : 32;
    const isLength = bits === undefined || (/^\d{1,3}$/.test(bits) && Number(bits) <= bitsMax);
    const isBlock = isIP(address) !== 0 && rest.length === 0 && isLength;
    if (!isBlock) throw new RangeError(`'${entry}' is not an IP address or a CIDR block`);
    if (bits === undefined) list.addAddress(address, familyOf(address));
    else list.addSubnet(address, Number(bits), familyOf(address));
  }
  return (address) => isIP(address) !== 0 && list.check(address, familyOf(address));
}

const familyOf = (address: string) => (isIP(address) === 6 ? "ipv6" : "ipv4");

/** The address for logs and limits. A dual-stack socket shows an IPv4 address as an IPv6 one. */
export function unmappedAddress(address: string): string {
  if (!/^[0:]+:ffff:/i.test(address) || isIP(address) !== 6) return address;
  const [, high, low] = /^::ffff:([\da-f]+):([\da-f]+)$/.exec(canonical(address)) ?? [];
  if (high === undefined || low === undefined) return address;
  const bits = [high, low].map((group) => Number.parseInt(group, 16));
  return bits.flatMap((group) => [group >> 8, group & 255]).join(".");
}

/** The addresses of one caller: an IPv4 address, or an IPv6 /64, the smallest block that networks assign. */
export function callersNetwork(address: string): string {
  if (isIP(address) !== 6) return address;
  const [head = [], tail = []] = canonical(address)
    .split("::")
    .map((part) => part.split(":").filter(Boolean));
  const zeros = Array.from({ length: 8 - head.length - tail.length }, () => "0");
  return `${[...head, ...zeros, ...tail].slice(0, 4).join(":")}::/64`;
}

/** The shortest spelling of an IPv6 address, without the zone. */
const canonical = (address: string) => new URL(`http://[${address.replace(/%.*/, "")}]`).hostname.slice(1, -1);

/** The host of the URL at which a listener is reached from its own machine. */
export function hostOfListener(host: string): string {
  if (["0.0.0.0", "::", "127.0.0.1", "localhost"].includes(host)) return "localhost";
  return isIP(host) === 6 ? `[${host}]` : host;
}

/** Whether only this machine reaches a listener on this address. */
export const isLoopback = (host: string): boolean => ["127.0.0.1", "localhost", "::1"].includes(host);

/** Whether nobody else can read or change what is sent there: over HTTPS, or on this machine. */
export const isSecureUrl = ({ protocol, hostname }: URL): boolean =>
  protocol === "https:" || (protocol === "http:" && isLoopback(hostname.replaceAll(/[[\]]/g, "")));

export const withoutEndSlashes = (url: string): string => url.replace(/(?<!\/)\/+$/, "");

/**
 * One sentence that says why we cannot listen on an address; undefined for another error.
 * @param prefix of the variables with the host and the port.
 */
export function listenTrouble(
  error: unknown,
  { HOST: host, PORT: port }: { readonly HOST: string; readonly PORT: number },
  prefix: "" | "ADMIN_" = "",
): string | undefined {
  switch ((error as NodeJS.ErrnoException).code) {
    case "EADDRINUSE":
      return `Port ${port} is in use: stop the program that has it, or set ${prefix}PORT to another one.`;
    case "EACCES":
      return `The process may not listen on port ${port}: set ${prefix}PORT to one above 1023.`;
    case "EADDRNOTAVAIL":
    case "ENOTFOUND":
    case "EAI_AGAIN":
    case "EAFNOSUPPORT":
    case "EINVAL":
      return `${prefix}HOST is '${host}', which is no address of this machine: set it to one, or to 0.0.0.0 for all.`;
    default:
      return undefined;
  }
}
