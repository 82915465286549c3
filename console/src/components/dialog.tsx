import {
  createContext,
  type ReactNode,
  type SubmitEventHandler,
  useContext,
  useEffect,
  useId,
  useRef,
  useState,
} from "react";
import { useHashLocation } from "wouter/use-hash-location";
import { problemOf } from "../api.ts";
import { text } from "../text.ts";

const OpenContext = createContext<(dialog: ReactNode) => void>(() => {});
const CloseContext = createContext<() => void>(() => {});

/**
 * Opens a dialog. It keeps the properties that it has then, so what it changes is what its user saw. Neither a refresh
 * nor an error of the screen closes it: it may show a secret that nobody sees again.
 */
export const useOpenDialog = () => useContext(OpenContext);

/** Closes the dialog that calls this, and no later one. */
export const useClose = () => useContext(CloseContext);

interface Opened {
  readonly dialog: ReactNode;
  readonly close: () => void;
}

/** The place of a screen's dialog. Another screen closes it. */
export function Dialogs({ children }: { readonly children: ReactNode }) {
  const [opened, setOpened] = useState<Opened | undefined>();
  const [location] = useHashLocation();
  useEffect(() => () => setOpened(undefined), [location]);
  const [open] = useState(() => (dialog: ReactNode) => {
    const one: Opened = { dialog, close: () => setOpened((now) => (now === one ? undefined : now)) };
    setOpened(one);
  });
  return (
    <OpenContext value={open}>
      {children}
      {opened !== undefined && <CloseContext value={opened.close}>{opened.dialog}</CloseContext>}
    </OpenContext>
  );
}

interface DialogProps {
  readonly title: string;
  /** Default: it closes. */
  readonly onClose?: () => void;
  readonly children: ReactNode;
}

/** The browser's own dialog: it keeps the focus inside, and Escape closes it. */
export function Dialog({ title, onClose, children }: DialogProps) {
  const close = useClose();
  const element = useRef<HTMLDialogElement>(null);
  const titleId = useId();
  useEffect(() => {
    const places = placesOf(document.activeElement);
    element.current?.showModal();
    return () => places.find((place) => place.isConnected)?.focus();
  }, []);
  return (
    <dialog ref={element} aria-labelledby={titleId} onClose={onClose ?? close}>
      <div className="stack">
        <h2 id={titleId}>{title}</h2>
        {children}
      </div>
    </dialog>
  );
}

/** Where the focus goes after a dialog: its opener, or what was around it if the change removed the opener. */
function placesOf(opener: Element | null): HTMLElement[] {
  const around: HTMLElement[] = [];
  for (let at = opener; at !== null; at = at.parentElement) {
    if (at instanceof HTMLElement && (at === opener || at.hasAttribute("tabindex"))) around.push(at);
  }
  return around;
}

interface FormProps {
  readonly submit: string;
  readonly isDangerous?: boolean;
  readonly isPending: boolean;
  readonly error: unknown;
  readonly onSubmit: (data: FormData) => void;
  readonly children?: ReactNode;
}

/** A form of a dialog. The API's own message says what is wrong. */
export function Form({ submit, isDangerous = false, isPending, error, onSubmit, children }: FormProps) {
  const close = useClose();
  const send: SubmitEventHandler<HTMLFormElement> = (event) => {
    event.preventDefault();
    onSubmit(new FormData(event.currentTarget));
  };
  return (
    <form className="stack" onSubmit={send}>
      {children}
      {error !== null && error !== undefined && (
        <p className="problem-text" role="alert">
          {problemOf(error).message}
        </p>
      )}
      <div className="dialog-actions">
        <button type="button" onClick={close}>
          {text.actions.cancel}
        </button>
        <button type="submit" className={isDangerous ? "danger" : "primary"} disabled={isPending}>
          {submit}
        </button>
      </div>
    </form>
  );
}

interface FieldProps {
  readonly label: string;
  readonly hint?: string | undefined;
  readonly children: (ids: { readonly id: string; readonly "aria-describedby": string | undefined }) => ReactNode;
}

export function Field({ label, hint, children }: FieldProps) {
  const id = useId();
  const hintId = `${id}-hint`;
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({ id, "aria-describedby": hint === undefined ? undefined : hintId })}
      {hint !== undefined && (
        <p id={hintId} className="small soft">
          {hint}
        </p>
      )}
    </div>
  );
}
