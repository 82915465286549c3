import { useState } from "react";
import { text } from "../text.ts";

interface CodeProps {
  readonly code: string;
  /** Absent for a single line, such as a key: then the button stands beside it. */
  readonly label?: string;
}

/** Code with a button that copies it. */
export function Code({ code, label }: CodeProps) {
  if (label === undefined) {
    return (
      <div className="code-line">
        <pre className="code">{code}</pre>
        <CopyButton value={code} />
      </div>
    );
  }
  return (
    <div className="stack tight">
      <div className="row">
        <h3>{label}</h3>
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
  // Browsers give the clipboard to pages over HTTPS and on localhost only. Elsewhere, the user selects the text.
  if (!isSecureContext) return null;
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
