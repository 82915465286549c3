import type { IncomingHttpHeaders } from "node:http";
import { isIP } from "node:net";
import { problemOfAccessToken } from "../../access/access-token.ts";
import { hintOfKey, keyPattern } from "../../access/principal.ts";
import { createAddressFilter, unmappedAddress } from "../../addresses.ts";
import type { Peer } from "../../exchange.ts";

/** Longest user agent that we keep, in characters. */
const userAgentCharactersMax = 100;

/** Returns who made a request. */
export type PeerOf = (remoteAddress: string | undefined, headers: IncomingHttpHeaders) => Peer;

/**
 * Finds a request's peer, also behind proxies. It believes X-Forwarded-For as far as trusted proxies wrote it.
 * @param trustedProxies addresses and CIDR blocks.
 */
export function createPeerOf(trustedProxies: readonly string[]): PeerOf {
  const isTrusted = createAddressFilter(trustedProxies);
  return (remoteAddress = "", headers) => {
    let address = unmappedAddress(remoteAddress);
    if (isTrusted(address)) {
      // Each proxy appends the address that it saw.
      for (const claimed of String(headers["x-forwarded-for"] ?? "")
        .split(",")
        .reverse()) {
        const next = unmappedAddress(claimed.trim());
        if (isIP(next) === 0) break;
        address = next;
        if (!isTrusted(address)) break;
      }
    }
    const key = /^bearer +(\S+) *$/i.exec(headers.authorization ?? "")?.[1];
    return {
      address,
      userAgent: headers["user-agent"]?.slice(0, userAgentCharactersMax),
      keyHint: key !== undefined && isWellFormed(key) ? hintOfKey(key) : undefined,
    };
  };
}

const isWellFormed = (key: string) => keyPattern.test(key) || problemOfAccessToken(key) === undefined;
