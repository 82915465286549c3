import { useState } from "react";

/** A key of 128 random bits. `crypto.randomUUID` would be shorter, but browsers have it over HTTPS and on localhost only. */
const newKey = (): string =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

type Keyed<Request> = Request & { readonly idempotencyKey: string };

/**
 * Requests that the service carries out once, however often they are sent. If an answer is lost, the same input sends
 * the same request: the service compares all of it, also a time that was counted from the first click.
 */
export class Repeatable {
  #last: { readonly input: string; readonly request: object } | undefined;

  /** The request with its idempotency key; the last request, if the input is the same. */
  of<Request extends object>(input: Iterable<unknown>, request: Request): Keyed<Request> {
    const given = JSON.stringify([...input]);
    if (this.#last?.input !== given) {
      this.#last = { input: given, request: { ...request, idempotencyKey: newKey() } };
    }
    return this.#last.request as Keyed<Request>;
  }

  /** The answer has come: from now on the same input means a further request. */
  answered(): void {
    this.#last = undefined;
  }
}

export const useRepeatable = (): Repeatable => useState(() => new Repeatable())[0];
