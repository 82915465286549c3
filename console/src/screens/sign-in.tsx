import { useQuery } from "@tanstack/react-query";
import { type SubmitEventHandler, useEffect, useState } from "react";
import { Field } from "../components/dialog.tsx";
import { Loading } from "../components/states.tsx";
import { comeBack, isBack, leaveForIssuer, problemOfSignIn } from "../oidc.ts";
import { safeText } from "../format.ts";
import { session } from "../session.ts";
import { settingsQuery } from "../settings.ts";
import { text } from "../text.ts";

export function SignIn() {
  const [isMalformed, setMalformed] = useState(false);
  const [problem, setProblem] = useState<string | undefined>();
  const [isReturning, setReturning] = useState(isBack);
  const { data: settings, error } = useQuery(settingsQuery);
  const oidc = settings?.oidc;
  useEffect(() => {
    // React runs effects twice in development; the address has its code only once.
    if (oidc === undefined || !isBack()) return;
    comeBack(oidc)
      .then((credential) => session.begin(credential))
      .catch((thrown: Error) => setProblem(problemOfSignIn(oidc, thrown)))
      .finally(() => setReturning(false));
  }, [oidc]);
  const reason = session.endedBy();
  const submit: SubmitEventHandler<HTMLFormElement> = (event) => {
    event.preventDefault();
    const token = String(new FormData(event.currentTarget).get("token")).trim();
    const isWhole = /^wp_adm_[0-9a-f]{40}$/.test(token);
    setMalformed(!isWhole);
    if (isWhole) session.begin({ token });
  };
  // Without an issuer no answer of one is waited for.
  const isSettled = error !== null || (settings !== undefined && oidc === undefined);
  if (isReturning && !isSettled) return <Loading what={text.session.checking} />;
  const leave = (chosen: NonNullable<typeof oidc>) =>
    leaveForIssuer(chosen).catch((thrown: Error) => setProblem(problemOfSignIn(chosen, thrown)));
  return (
    <main className="sign-in">
      <form className="panel" onSubmit={submit}>
        <h1>{text.session.title}</h1>
        <p className="soft">{text.session.lead}</p>
        {reason !== undefined && <p role="alert">{text.session.ended[reason]}</p>}
        {problem !== undefined && (
          <p className="problem-text" role="alert">
            {safeText(problem)}
          </p>
        )}
        {oidc !== undefined && (
          <>
            <button type="button" className="primary" onClick={() => void leave(oidc)}>
              {text.session.withIssuer(new URL(oidc.issuer).host)}
            </button>
            <p className="soft small">{text.session.or}</p>
          </>
        )}
        <Field label={text.session.label} hint={text.session.hint}>
          {(ids) => (
            <input {...ids} name="token" type="password" autoComplete="off" spellCheck={false} required autoFocus />
          )}
        </Field>
        {isMalformed && (
          <p className="problem-text" role="alert">
            {text.session.malformed}
          </p>
        )}
        <button type="submit" className="primary">
          {text.session.submit}
        </button>
      </form>
    </main>
  );
}
