import type { AdminCall } from "./call.ts";

/** Begins what a message quotes of the caller's request: a value, what it has, or the name of a member of metadata. */
const quotePattern = /'|; it (?:is|has) |\bmetadata[.[]/;

/**
 * A message about a request of ingest.v1, as the caller of administration may see it. Messages never quote emails, but may
 * quote external ids and names of metadata. A viewer sees none of these, so a message ends there.
 */
export function shownMessage<Message extends string | undefined>(
  { seesPersonalData }: Pick<AdminCall, "seesPersonalData">,
  code: string | undefined,
  message: Message,
): Message | string {
  // It quotes an eventType only.
  if (message === undefined || seesPersonalData || code === "forbidden_event_type") return message;
  const found = quotePattern.exec(message);
  return found === null ? message : `${message.slice(0, found.index).trimEnd()}…`;
}
