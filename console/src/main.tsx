import { TransportProvider } from "@connectrpc/connect-query";
import { QueryClient, QueryClientProvider } from "@tanstack/react-query";
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { type AroundNavHandler, Router } from "wouter";
import { useHashLocation } from "wouter/use-hash-location";
import { App } from "./app.tsx";
import { problemOf, transport } from "./api.ts";
import { bodies } from "./body.ts";
import "./tokens.css";
import "./base.css";
import { Toasts } from "./components/toast.tsx";
import { whenSessionEnds } from "./session.ts";

/** Without a network, a call fails. The default would keep a change, and carry it out after its user cancelled it. */
const networkMode = "always";

const queryClient = new QueryClient({
  defaultOptions: {
    queries: {
      networkMode,
      refetchOnReconnect: true,
      staleTime: 5_000,
      // What passes by itself goes from the page without a click.
      refetchInterval: ({ state }) => (state.error !== null && problemOf(state.error).isPassing ? 5_000 : false),
      // Only what may pass by itself is worth another try.
      retry: (failures, error) => failures < 2 && problemOf(error).isPassing,
    },
    mutations: { networkMode, retry: false },
  },
});

whenSessionEnds(() => {
  queryClient.clear();
  bodies.forgetAll();
});

/** A link leads to the top of another screen. Back leads to where its user was, and the browser sees to that. */
const aroundNav: AroundNavHandler = (navigate, to, options) => {
  if (location.hash === `#${to}`) return;
  navigate(to, options);
  if (options?.replace !== true) scrollTo(0, 0);
};

const root = document.getElementById("root");
if (root === null) throw new Error("index.html has no #root");
createRoot(root).render(
  <StrictMode>
    <TransportProvider transport={transport}>
      <QueryClientProvider client={queryClient}>
        <Router hook={useHashLocation} aroundNav={aroundNav}>
          <Toasts>
            <App />
          </Toasts>
        </Router>
      </QueryClientProvider>
    </TransportProvider>
  </StrictMode>,
);
