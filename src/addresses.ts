import { BlockList, isIP } from "node:net";

/**
 * Tells whether an IP address lies within one of the addresses and CIDR blocks.
 * @throws RangeError for an entry that is neither.
 */
export function createAddressFilter(entries: readonly string[]): (address: string) => boolean {
  const list = new BlockList();
  for (const entry of entries) {
    const [address = "", bits, ...rest] = entry.split("/");
    const isBlock = isIP(address) !== 0 && rest.length === 0 && (bits === undefined || /^\d{1,3}$/.test(bits));
    if (!isBlock) throw new RangeError(`'${entry}' is not an IP address or a CIDR block`);
    if (bits === undefined) list.addAddress(address, familyOf(address));
    else list.addSubnet(address, Number(bits), familyOf(address));
  }
  return (address) => isIP(address) !== 0 && list.check(address, familyOf(address));
}

const familyOf = (address: string) => (isIP(address) === 6 ? "ipv6" : "ipv4");
