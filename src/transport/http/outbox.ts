/** An answer that is there as a whole. */
export interface Outgoing {
  /** Sends it. Does not throw. */
  leave(): void;
}

let outgoing: Outgoing[] = [];

/**
 * Sends the answer at the end of this turn of the event loop, after the others that are there by then.
 *
 * Sent one by one between the requests, each would find the process that waits for it, a client or a proxy, asleep again,
 * and to wake it costs the system a tenth of what a ping costs; sent one after the other they find it awake. What arrived
 * together is answered together, so nobody waits for a later request.
 */
export function leaveTogether(answer: Outgoing): void {
  if (outgoing.push(answer) === 1) setImmediate(leaveAll);
}

function leaveAll(): void {
  const leaving = outgoing;
  outgoing = [];
  for (const answer of leaving) answer.leave();
}
