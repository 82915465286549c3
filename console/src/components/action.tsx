import type { ReactNode } from "react";

interface ActionProps {
  readonly isOff: boolean;
  readonly onClick: () => unknown;
  readonly children: ReactNode;
}

/** A button that may be off. It keeps the focus then: a disabled one would lose the keyboard's place. */
export const Action = ({ isOff, onClick, children }: ActionProps) => (
  <button type="button" aria-disabled={isOff} onClick={() => void (isOff || onClick())}>
    {children}
  </button>
);
