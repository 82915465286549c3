import { useQuery } from "@connectrpc/connect-query";
import { lazy, Suspense, type ReactNode } from "react";
import { Redirect, Route, Switch } from "wouter";
import { useHashLocation } from "wouter/use-hash-location";
import { Admin } from "../../src/gen/ingest/admin/v1/admin_pb.js";
import { Broken } from "./components/broken.tsx";
import { Dialogs, useOpenDialog } from "./components/dialog.tsx";
import { Layout } from "./components/layout.tsx";
import { Empty, Failed, Loading, Read } from "./components/states.tsx";
import { IdentityContext, useMay } from "./identity.ts";
import { SignIn } from "./screens/sign-in.tsx";
import { session, useToken } from "./session.ts";
import { text } from "./text.ts";

/** Each screen is loaded when it is first shown. */
const Overview = lazy(() => import("./screens/overview.tsx"));
const Keys = lazy(() => import("./screens/keys.tsx"));
const Live = lazy(() => import("./screens/live.tsx"));
const Requests = lazy(() => import("./screens/requests.tsx"));
const Request = lazy(() => import("./screens/requests.tsx").then(({ Request }) => ({ default: Request })));
const Workers = lazy(() => import("./screens/workers.tsx"));
const WorkerPage = lazy(() => import("./screens/workers.tsx").then(({ WorkerPage }) => ({ default: WorkerPage })));
const Playground = lazy(() => import("./screens/playground.tsx"));
const Tokens = lazy(() => import("./screens/tokens.tsx"));
const Audit = lazy(() => import("./screens/audit.tsx"));
const Organizations = lazy(() => import("./screens/organizations.tsx"));
const EditOrganization = lazy(() => import("./screens/organizations.tsx").then(({ Edit }) => ({ default: Edit })));

export function App() {
  return useToken() === undefined ? <SignIn /> : <SignedIn />;
}

function SignedIn() {
  const { data: identity, error, refetch } = useQuery(Admin.method.whoAmI, {});
  const [location] = useHashLocation();
  // An error of a later reading says nothing new, and would take an open dialog along.
  if (identity === undefined) {
    if (error === null) return <Loading what={text.session.checking} />;
    return (
      <Failed error={error} retry={refetch}>
        <SignOut />
      </Failed>
    );
  }
  return (
    <IdentityContext value={identity}>
      <Dialogs>
        <Switch>
          <Route path="/o/:organizationId" nest>
            {({ organizationId }) => (
              <Layout organizationId={organizationId}>
                <Broken at={location}>
                  <Suspense fallback={<Loading />}>
                    <Screens key={organizationId} organizationId={organizationId} />
                  </Suspense>
                </Broken>
              </Layout>
            )}
          </Route>
          <Route>
            <Home organizationId={identity.organizationId} />
          </Route>
        </Switch>
      </Dialogs>
    </IdentityContext>
  );
}

export interface ScreenProps {
  readonly organizationId: string;
}

function Screens({ organizationId }: ScreenProps): ReactNode {
  return (
    <Switch>
      <Route path="/keys">
        <Keys organizationId={organizationId} />
      </Route>
      <Route path="/live">
        <Live organizationId={organizationId} />
      </Route>
      <Route path="/requests">
        <Requests organizationId={organizationId} />
      </Route>
      <Route path="/requests/:requestId">{({ requestId }) => <Request requestId={requestId} />}</Route>
      <Route path="/workers">
        <Workers organizationId={organizationId} />
      </Route>
      <Route path="/workers/:workerId">
        {({ workerId }) => <WorkerPage organizationId={organizationId} workerId={workerId} />}
      </Route>
      <Route path="/playground">
        <Playground organizationId={organizationId} />
      </Route>
      <Route path="/tokens">
        <Tokens organizationId={organizationId} />
      </Route>
      <Route path="/audit">
        <Audit organizationId={organizationId} />
      </Route>
      <Route path="/organizations">
        <Organizations />
      </Route>
      <Route path="/">
        <Overview organizationId={organizationId} />
      </Route>
      <Route>
        <Empty title={text.app.noScreen} />
      </Route>
    </Switch>
  );
}

/** Goes to the credential's organisation, or to the newest one. */
function Home({ organizationId }: { readonly organizationId: string | undefined }) {
  const may = useMay();
  const open = useOpenDialog();
  const organizations = useQuery(Admin.method.listOrganizations, { pageSize: 1 });
  const newest = organizationId ?? organizations.data?.organizations[0]?.id;
  if (newest !== undefined) return <Redirect to={`/o/${newest}`} replace />;
  const create = () =>
    open(
      <Suspense>
        <EditOrganization />
      </Suspense>,
    );
  return (
    <main className="state">
      <Read of={organizations}>
        {() => (
          <Empty title={text.app.noOrganization} detail={text.app.firstOrganization}>
            {may.operate && (
              <button type="button" className="primary" onClick={create}>
                {text.organizations.create}
              </button>
            )}
          </Empty>
        )}
      </Read>
      <SignOut />
    </main>
  );
}

const SignOut = () => (
  <button type="button" onClick={() => session.end()}>
    {text.app.signOut}
  </button>
);
