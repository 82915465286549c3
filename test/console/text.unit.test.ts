import { expect, test } from "vitest";
import { percent } from "../../console/src/format.ts";
import { text } from "../../console/src/text.ts";

test.each([
  [text.keys.moreTypes(1), "Show 1 more type"],
  [text.keys.moreTypes(1_200), "Show 1,200 more types"],
  [text.keys.foundApps(1, 1), "1 app fits."],
  [text.keys.foundApps(1_200, 10), "1,200 apps fit; these are the first 10."],
  [text.requests.moreRejections(1), "1 more rejected event is only counted."],
  [text.requests.moreRejections(2), "2 more rejected events are only counted."],
  [text.overview.moreRefused(1, "CRM"), "1 more type of CRM was refused often"],
  [text.overview.projected("1", undefined), "At this pace 1 by the end of the month"],
  [text.overview.projected("1", percent(12.3456)), "At this pace 1 by the end of the month, 1,234.6 % of the quota"],
  [text.body.sum(1, 1), "1 event, 1 of them is refused."],
])("a text counts as people do: %s", (said, expected) => {
  expect(said).toBe(expected);
});
