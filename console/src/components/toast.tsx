import { createContext, type ReactNode, useCallback, useContext, useState } from "react";

interface Toast {
  readonly id: number;
  readonly message: string;
  readonly isBad: boolean;
}

type Say = (message: string, isBad?: boolean) => void;

const ToastContext = createContext<Say>(() => {});

/** Says a sentence for a few seconds, also to screen readers. */
export const useToast = (): Say => useContext(ToastContext);

const shownMs = 6_000;
let nextId = 0;

export function Toasts({ children }: { readonly children: ReactNode }) {
  const [toasts, setToasts] = useState<readonly Toast[]>([]);
  const say = useCallback<Say>((message, isBad = false) => {
    const id = nextId++;
    setToasts((all) => [...all.slice(-3), { id, message, isBad }]);
    setTimeout(() => setToasts((all) => all.filter((one) => one.id !== id)), shownMs);
  }, []);
  return (
    <ToastContext value={say}>
      {children}
      <div className="toasts" role="status" aria-live="polite">
        {toasts.map(({ id, message, isBad }) => (
          <p key={id} className={isBad ? "toast bad" : "toast"}>
            {message}
          </p>
        ))}
      </div>
    </ToastContext>
  );
}
