import { useQuery } from "@connectrpc/connect-query";
import { type ReactNode, useEffect, useRef, useState } from "react";
import { Link, useLocation } from "wouter";
import { Admin } from "../../../src/gen/ingest/admin/v1/admin_pb.js";
import { serviceUrl } from "../api.ts";
import { useIdentity, useMay } from "../identity.ts";
import { safeText } from "../format.ts";
import { session } from "../session.ts";
import { text } from "../text.ts";
import { Empty } from "./states.tsx";

const screens = [
  { path: "/", name: text.nav.overview },
  { path: "/keys", name: text.nav.keys },
  { path: "/live", name: text.nav.live },
  { path: "/requests", name: text.nav.requests },
  { path: "/workers", name: text.nav.workers },
  { path: "/playground", name: text.nav.playground },
  { path: "/audit", name: text.nav.audit, needsChange: true },
  { path: "/tokens", name: text.nav.tokens, needsChange: true },
  { path: "/organizations", name: text.nav.organizations },
] as const;

interface LayoutProps {
  readonly organizationId: string;
  readonly children: ReactNode;
}

export function Layout({ organizationId, children }: LayoutProps) {
  const [isOpen, setOpen] = useState(false);
  const [location] = useLocation();
  const main = useRef<HTMLElement>(null);
  useEffect(() => {
    setOpen(false);
    // A link of the last screen goes with it, and would take the place of the keyboard along.
    const at = document.activeElement;
    if (at === document.body || main.current?.contains(at) === true) main.current?.focus({ preventScroll: true });
  }, [location]);
  const { change } = useMay();
  const identity = useIdentity();
  const isAllowed = (screen: (typeof screens)[number]) => change || !("needsChange" in screen);
  // Neither a link nor a typed address leads to a screen that would only fail.
  const shown = screens.filter(isAllowed);
  const screen = screens.find(({ path }) => isAt(location, path));
  const isForbidden = screen !== undefined && !isAllowed(screen);
  useEffect(() => {
    document.title = text.app.title(screen?.name);
    return () => void (document.title = text.app.title(undefined));
  }, [screen]);
  // It covers the page, also if the choice leads to the same screen. What had the focus goes with it.
  const closeMenu = () => {
    if (!isOpen) return;
    setOpen(false);
    main.current?.focus({ preventScroll: true });
  };
  return (
    <>
      <a className="skip" href="#main" onClick={skip}>
        {text.app.skip}
      </a>
      <header className="bar">
        <Link className="brand" href="/">
          <img src="./icon.svg" alt="" width="24" height="24" />
          {text.app.name} <span className="soft wide-only">{text.app.console}</span>
        </Link>
        <span className="push" />
        <span className="soft small wide-only">
          {safeText(identity.name)} · {text.app.role[identity.role]}
        </span>
        <a className="wide-only small" href={`${serviceUrl}/docs`}>
          {text.app.docs}
        </a>
        <ThemeButton />
        <button type="button" className="quiet" onClick={() => session.end()}>
          {text.app.signOut}
        </button>
        <button
          type="button"
          className="narrow-only"
          aria-expanded={isOpen}
          aria-controls="side"
          onClick={() => setOpen(!isOpen)}
        >
          {text.app.menu}
        </button>
      </header>
      <div className="frame">
        <nav id="side" className="side" data-open={isOpen} aria-label={text.app.console}>
          <OrganizationSwitch organizationId={organizationId} onChoose={closeMenu} />
          <ul>
            {shown.map(({ path, name }) => (
              <li key={path}>
                <Link href={path} aria-current={isAt(location, path) ? "page" : undefined} onClick={closeMenu}>
                  {name}
                </Link>
              </li>
            ))}
          </ul>
        </nav>
        <main id="main" ref={main} className="content" tabIndex={-1}>
          {isForbidden ? <Empty title={text.states.forbidden} detail={text.states.forbiddenScreen} /> : children}
        </main>
      </div>
    </>
  );
}

const isAt = (location: string, path: string) => (path === "/" ? location === "/" : location.startsWith(path));

/** The hash of the address is the screen's path, so a link to #main would leave the screen. */
function skip(event: { preventDefault(): void }): void {
  event.preventDefault();
  document.getElementById("main")?.focus();
}

interface SwitchProps {
  readonly organizationId: string;
  readonly onChoose: () => void;
}

/** The organisations that the credential sees; the first page is enough to switch by. */
function OrganizationSwitch({ organizationId, onChoose }: SwitchProps) {
  const { data } = useQuery(Admin.method.listOrganizations, { pageSize: 100 });
  const { data: own } = useQuery(Admin.method.getOrganization, { organizationId });
  const [, navigate] = useLocation();
  const others = data?.organizations.filter(({ id }) => id !== organizationId) ?? [];
  if (others.length === 0) return <strong>{safeText(own?.name ?? "…")}</strong>;
  return (
    <select
      aria-label={text.app.organization}
      value={organizationId}
      onChange={(event) => {
        const { value } = event.currentTarget;
        navigate(value === "" ? "/organizations" : `~/o/${value}`);
        onChoose();
      }}
    >
      <option value={organizationId}>{safeText(own?.name ?? organizationId)}</option>
      {others.map(({ id, name }) => (
        <option key={id} value={id}>
          {safeText(name)}
        </option>
      ))}
      {data?.nextPageToken !== "" && <option value="">{text.app.moreOrganizations}</option>}
    </select>
  );
}

const themeName = "ingest-console-theme";

/** Light and dark, or as the system says. */
function ThemeButton() {
  const [theme, setTheme] = useState(() => localStorage.getItem(themeName) ?? "system");
  useEffect(() => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem(themeName, theme);
  }, [theme]);
  const isDark = () => theme === "dark" || (theme === "system" && matchMedia("(prefers-color-scheme: dark)").matches);
  return (
    <button type="button" className="quiet" onClick={() => setTheme(isDark() ? "light" : "dark")}>
      {text.app.theme}
    </button>
  );
}
