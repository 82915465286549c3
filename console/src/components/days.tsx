import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { text } from "../text.ts";
import { Field } from "./dialog.tsx";

/** The days for which a credential is valid; without a number it never expires. */
export const Days = ({ days }: { readonly days?: number }) => (
  <Field label={text.keys.days}>
    {(ids) => <input {...ids} name="days" type="number" min={1} max={3650} defaultValue={days} />}
  </Field>
);

/** The expiry that a form with `Days` asks for. */
export function expiryOf(form: FormData): { readonly expiresAt?: Timestamp } {
  const days = Number(form.get("days"));
  return days > 0 ? { expiresAt: timestampFromMs(Date.now() + days * 86_400_000) } : {};
}
