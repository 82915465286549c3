import { useState } from "react";
import { text } from "../text.ts";

/** Code with a button that copies it. */
export function Code({ code, label }: { readonly code: string; readonly label?: string }) {
  return (
    <div className="stack">
      <div className="row">
        {label !== undefined && <h3>{label}</h3>}
        <span className="push" />
        <CopyButton value={code} />
      </div>
      <pre className="code" tabIndex={0} aria-label={label}>
        {code}
      </pre>
    </div>
  );
}

export function CopyButton({ value }: { readonly value: string }) {
  const [isCopied, setCopied] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(value);
    setCopied(true);
    setTimeout(() => setCopied(false), 2_000);
  };
  return (
    <button type="button" onClick={() => void copy()}>
      {isCopied ? text.actions.copied : text.actions.copy}
    </button>
  );
}
