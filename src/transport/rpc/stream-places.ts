import { type ContextKey, createContextKey } from "@connectrpc/connect";
import { callersNetwork } from "../../addresses.ts";
import type { Incoming } from "../http/route.ts";

export interface StreamPlacesOptions {
  /** Limits on concurrent streams: of this process, of one connection, and of one address (of IPv6: one /64). */
  readonly max: number;
  readonly perConnectionMax: number;
  readonly perAddressMax: number;
}

/** The request that Connect's router serves, for the implementation of its RPC. */
export const requestKey: ContextKey<Incoming | undefined> = createContextKey<Incoming | undefined>(undefined, {
  description: "request",
});

/** Limits keyless streams. A caller with many of them does not keep others out. */
export class StreamPlaces {
  readonly #options: StreamPlacesOptions;
  readonly #ofConnections = new Map<unknown, number>();
  readonly #ofAddresses = new Map<unknown, number>();
  #open = 0;
  #refused = 0;

  constructor(options: StreamPlacesOptions) {
    this.#options = options;
  }

  get open(): number {
    return this.#open;
  }

  get refused(): number {
    return this.#refused;
  }

  /** Takes a place. Returns a function that leaves it, to be called once; undefined if there is no place. */
  take({ connection, start }: Incoming): (() => void) | undefined {
    const address = callersNetwork(start.peer().address);
    const { max, perConnectionMax, perAddressMax } = this.#options;
    if (
      this.#open >= max ||
      (this.#ofConnections.get(connection) ?? 0) >= perConnectionMax ||
      (this.#ofAddresses.get(address) ?? 0) >= perAddressMax
    ) {
      this.#refused++;
      return undefined;
    }
    this.#count(connection, address, 1);
    return () => this.#count(connection, address, -1);
  }

  #count(connection: unknown, address: unknown, change: 1 | -1): void {
    this.#open += change;
    add(this.#ofConnections, connection, change);
    add(this.#ofAddresses, address, change);
  }
}

function add(counts: Map<unknown, number>, name: unknown, change: number): void {
  const count = (counts.get(name) ?? 0) + change;
  if (count === 0) counts.delete(name);
  else counts.set(name, count);
}
