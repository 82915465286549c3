import type { ReactNode } from "react";
import { text } from "../text.ts";
import { Broken } from "./broken.tsx";
import { Code } from "./copy.tsx";
import { Close, Dialog, useClose } from "./dialog.tsx";

interface SecretProps {
  readonly title: string;
  /** Absent if the first answer was lost, and a further one came more than a minute later. */
  readonly secret: string | undefined;
  /** What to do with it. */
  readonly children?: ReactNode;
}

/** Shows a new secret, once, even if what to do with it cannot be shown. */
export function SecretDialog({ title, secret, children }: SecretProps) {
  const close = useClose();
  return (
    <Dialog title={title}>
      {secret === undefined ? (
        <p className="problem-text" role="alert">
          {text.keys.secretLost}
        </p>
      ) : (
        <>
          <p role="status">{text.keys.secretOnce}</p>
          <Code code={secret} />
          <Broken instead={null}>{children}</Broken>
        </>
      )}
      <Close label={text.keys.done} onClick={close} />
    </Dialog>
  );
}
