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
import { flushSync } from "react-dom";
import { useHashLocation } from "wouter/use-hash-location";
import { problemOf } from "../api.ts";
import { text } from "../text.ts";
import { Broken } from "./broken.tsx";

type Open = (dialog: ReactNode, isKept?: boolean) => void;

const OpenContext = createContext<Open>(() => {});
const CloseContext = createContext<() => void>(() => {});

/**
 * Opens a dialog. It keeps the properties that it has then, so what it changes is what its user saw. Neither a refresh
 * nor an error of the screen closes it. Another screen does, unless it is kept.
 */
export const useOpenDialog = () => useContext(OpenContext);

/**
 * Tells what a change brought, in place of the dialog that asked for it. Its user may have left that dialog, and even
 * its screen: nobody can see the answer again, so only its user closes it.
 */
export function useTell(): (answer: ReactNode) => void {
  const [close, open] = [useClose(), useOpenDialog()];
  return (answer) =>
    // At once: between the two dialogs, a key would go to neither.
    flushSync(() => {
      close();
      open(answer, true);
    });
}

/** Closes the dialog that calls this, and no later one. */
export const useClose = () => useContext(CloseContext);

interface Opened {
  readonly id: number;
  readonly dialog: ReactNode;
  readonly isKept: boolean;
  readonly close: () => void;
}

let nextId = 0;

/** The place of a session's dialogs. They end with it, so a late answer opens none for the next user. */
export function Dialogs({ children }: { readonly children: ReactNode }) {
  const [opened, setOpened] = useState<readonly Opened[]>([]);
  const [location] = useHashLocation();
  useEffect(() => () => setOpened((all) => all.filter(({ isKept }) => isKept)), [location]);
  const [open] = useState<Open>(() => (dialog: ReactNode, isKept = false) => {
    const id = nextId++;
    const close = () => setOpened((all) => all.filter((one) => one.id !== id));
    setOpened((all) => [...all, { id, dialog, isKept, close }]);
  });
  return (
    <OpenContext value={open}>
      {children}
      {opened.map(({ id, dialog, close }) => (
        <CloseContext key={id} value={close}>
          <Broken instead={<BrokenDialog />}>{dialog}</Broken>
        </CloseContext>
      ))}
    </OpenContext>
  );
}

function BrokenDialog() {
  const close = useClose();
  return (
    <Dialog title={text.states.brokenDialog}>
      <p>{text.states.brokenDetail}</p>
      <Close onClick={close} />
    </Dialog>
  );
}

interface CloseProps {
  readonly label?: string;
  readonly onClick: () => void;
}

/** The only button of a dialog that tells something. */
export const Close = ({ label = text.actions.close, onClick }: CloseProps) => (
  <div className="dialog-actions">
    <button type="button" className="primary" onClick={onClick}>
      {label}
    </button>
  </div>
);

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
    if (isPending) return;
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
        <button type="submit" className={isDangerous ? "danger" : "primary"} aria-disabled={isPending}>
          {submit}
        </button>
      </div>
    </form>
  );
}

interface CheckProps {
  readonly name: string;
  readonly label: string;
  readonly isChecked?: boolean;
}

export const Check = ({ name, label, isChecked = false }: CheckProps) => (
  <label className="check">
    <input type="checkbox" name={name} defaultChecked={isChecked} />
    {label}
  </label>
);

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
