import type { ReactNode } from "react";
import { problemOf, serviceUrl } from "../api.ts";
import { text } from "../text.ts";

export const Loading = ({ what = text.states.loading }: { readonly what?: string }) => (
  <div className="state soft" role="status">
    {what}…
  </div>
);

interface EmptyProps {
  readonly title: string;
  readonly detail?: string;
  readonly children?: ReactNode;
}

export const Empty = ({ title, detail, children }: EmptyProps) => (
  <div className="state">
    <h2>{title}</h2>
    {detail !== undefined && <p className="soft">{detail}</p>}
    {children}
  </div>
);

interface FailedProps {
  readonly error: unknown;
  readonly retry?: () => unknown;
  /** Another way on, such as a button. */
  readonly children?: ReactNode;
}

/** An error in the API's words, with its page and the request's id. */
export function Failed({ error, retry, children }: FailedProps) {
  const { code, message, requestId, docsUrl } = problemOf(error);
  const title = code === "forbidden_scope" ? text.states.forbidden : text.states.failed;
  // The same call would fail again.
  const isFinal = code === "forbidden_scope" || code === "not_found";
  return (
    <div className="state" role="alert">
      <h2>{title}</h2>
      <p className="soft">{message}</p>
      {requestId !== undefined && (
        <p className="small soft">
          {text.states.requestId} <span className="mono">{requestId}</span>
          {docsUrl !== undefined && (
            <>
              {" · "}
              <a href={docsUrl}>{text.states.about(code)}</a>
            </>
          )}
        </p>
      )}
      {retry !== undefined && !isFinal && (
        <button type="button" onClick={() => void retry()}>
          {text.states.again}
        </button>
      )}
      {children}
    </div>
  );
}

interface ReadProps<Data> {
  readonly of: {
    readonly data: Data | undefined;
    readonly error: unknown;
    readonly refetch: () => unknown;
  };
  readonly children: (data: Data) => ReactNode;
}

/**
 * What a reading brought, in all its states. An error of a later reading takes nothing from the page, with what its
 * user typed there, unless it says that the object is gone.
 */
export function Read<Data>({ of: { data, error, refetch }, children }: ReadProps<Data>) {
  const hasFailed = error !== null;
  if (data === undefined || (hasFailed && problemOf(error).code === "not_found")) {
    return hasFailed ? <Failed error={error} retry={refetch} /> : <Loading />;
  }
  return (
    <div className="stack">
      {hasFailed && (
        <p className="problem-text row" role="alert">
          {text.states.old(problemOf(error).message)}
          <button type="button" onClick={() => void refetch()}>
            {text.states.again}
          </button>
        </p>
      )}
      {children(data)}
    </div>
  );
}

/** The code of an error, with its page. */
export const ErrorLink = ({ code }: { readonly code: string }) => (
  <a href={`${serviceUrl}/docs/errors/${code}`}>{code}</a>
);
