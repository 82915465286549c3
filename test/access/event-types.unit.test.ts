import { expect, test } from "vitest";
import { firstOutside, whitelist } from "../../src/access/event-types.ts";

test.each([
  [["ticket.*"], ["ticket.*"], undefined],
  [["ticket.*", "deploy.done"], ["*"], undefined],
  [["ticket.*"], ["t*"], undefined],
  [["*"], ["t*"], "*"],
  [["t*"], ["ticket.*"], "t*"],
  [["ticket.sold"], ["deploy.*", "ticket.*"], undefined],
  [["ticket.sold"], ["ticket.sold"], undefined],
  [["ticket.sold"], ["ticket.solder"], "ticket.sold"],
  [["ticket.*"], ["ticket.sold", "ticket."], "ticket.*"],
  [["ticket.sold", "ci.x", "ci.y"], ["ticket.*"], "ci.x"],
  [["ticket.sold"], [], "ticket.sold"],
  [[], [], undefined],
] as const)("of %j the first outside %j is %s", (eventTypes, allow, outside) => {
  expect(firstOutside(eventTypes, allow)).toBe(outside);
  // A list lies within a whitelist only if the whitelist allows each of its types.
  const isAllowed = [eventTypes, allow].map(whitelist);
  for (const type of ["ticket.", "ticket.sold", "ticket.x", "t", "ci.x", "deploy.done", "zz"]) {
    if (outside === undefined && isAllowed[0]?.(type)) expect(isAllowed[1]?.(type), type).toBe(true);
  }
});
