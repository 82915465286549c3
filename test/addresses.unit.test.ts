import { expect, test } from "vitest";
import { callersNetwork, hostOfListener, unmappedAddress } from "../src/addresses.ts";

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
