import { expect, test } from "vitest";
import { callersNetwork, createAddressFilter, hostOfListener, unmappedAddress } from "../src/addresses.ts";

test.each([
  ["::ffff:1.2.3.4", "1.2.3.4"],
  ["::FFFF:102:304", "1.2.3.4"],
  ["0:0:0:0:0:ffff:1.2.3.4", "1.2.3.4"],
  ["1.2.3.4", "1.2.3.4"],
  ["2001:db8::1", "2001:db8::1"],
  ["::ffff:0:1.2.3.4", "::ffff:0:1.2.3.4"],
  ["::ffff:x", "::ffff:x"],
  ["", ""],
])("%s is the address %s", (given, address) => expect(unmappedAddress(given)).toBe(address));

test.each([
  ["1.2.3.4", "1.2.3.4"],
  ["2001:DB8:0:1:5::6", "2001:db8:0:1::/64"],
  ["2001:db8:0:1::", "2001:db8:0:1::/64"],
  ["::1", "0:0:0:0::/64"],
  ["fe80::1%eth0", "fe80:0:0:0::/64"],
])("%s counts as %s", (address, network) => expect(callersNetwork(address)).toBe(network));

test.each([
  ["0.0.0.0", "localhost"],
  ["::", "localhost"],
  ["127.0.0.1", "localhost"],
  ["::1", "[::1]"],
  ["192.0.2.1", "192.0.2.1"],
  ["ingest.internal", "ingest.internal"],
])("a listener on %s has the host %s", (host, name) => expect(hostOfListener(host)).toBe(name));

test("a filter matches an IPv4 address in either form, and refuses an impossible block by name", () => {
  const isInside = createAddressFilter(["10.0.0.0/8", "::ffff:192.0.2.0/120", "2001:db8::/32", "203.0.113.9"]);
  const inside = ["10.1.2.3", "::ffff:10.1.2.3", "192.0.2.7", "2001:DB8::1", "203.0.113.9"];
  expect(inside.filter((address) => !isInside(address))).toEqual([]);
  expect(["11.0.0.1", "192.0.3.7", "2001:db9::1", "203.0.113.8", "10.1", ""].filter(isInside)).toEqual([]);
  for (const entry of ["10.0.0.0/33", "::/129", "10.0.0.0/", "10.0.0.0/8/8", "10.0.0/8", "here", "10.0.0.0/-1", ""]) {
    expect(() => createAddressFilter([entry]), entry).toThrow(`'${entry}' is not an IP address or a CIDR block`);
  }
});
