// The only script of the pages: the theme, copy buttons, tabs, the menu of narrow screens, and the forms that try a call.
{
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  /** The browser may forbid storage; then a choice lasts as long as the page. */
  const remembered = (name) => {
    try {
      return localStorage.getItem(name);
    } catch {
      return null;
    }
  };
  const remember = (name, value) => {
    try {
      localStorage.setItem(name, value);
    } catch {}
  };

  let theme = themes.includes(remembered("theme")) ? remembered("theme") : "system";
  root.dataset.theme = theme;
  root.classList.add("js");

  addEventListener("DOMContentLoaded", () => {
    switchTheme();
    openMenu();
    for (const samples of document.querySelectorAll(".samples")) makeTabs(samples);
    showLanguage(remembered("language") ?? "curl");
    for (const button of document.querySelectorAll(".copy")) copies(button);
    for (const details of document.querySelectorAll(".try")) tries(details);
  });

  function switchTheme() {
    const button = document.querySelector("button.theme");
    const show = () => {
      root.dataset.theme = theme;
      button.textContent = `Theme: ${theme}`;
    };
    button.hidden = false;
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      remember("theme", theme);
      show();
    });
    show();
  }

  function openMenu() {
    const button = document.querySelector("button.menu");
    const set = (open) => {
      button.setAttribute("aria-expanded", String(open));
      root.classList.toggle("menu-open", open);
    };
    button.hidden = false;
    button.addEventListener("click", () => set(!root.classList.contains("menu-open")));
    document.querySelector("#sidebar").addEventListener("click", ({ target }) => target.closest("a") && set(false));
  }

  function makeTabs(samples) {
    const bar = document.createElement("div");
    bar.className = "tabs";
    for (const figure of samples.querySelectorAll("figure")) {
      const tab = document.createElement("button");
      tab.type = "button";
      tab.textContent = figure.dataset.label;
      tab.addEventListener("click", () => {
        remember("language", figure.dataset.label);
        showLanguage(figure.dataset.label);
      });
      bar.append(tab);
    }
    samples.prepend(bar);
  }

  function showLanguage(language) {
    for (const samples of document.querySelectorAll(".samples")) {
      const figures = [...samples.querySelectorAll("figure")];
      const shown = figures.find(({ dataset }) => dataset.label === language) ?? figures[0];
      for (const figure of figures) figure.hidden = figure !== shown;
      for (const tab of samples.querySelectorAll(".tabs button")) {
        tab.setAttribute("aria-pressed", String(tab.textContent === shown.dataset.label));
      }
    }
  }

  function copies(button) {
    // Browsers offer the clipboard only over TLS and on localhost.
    if (navigator.clipboard === undefined) return;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(button.closest("figure").querySelector("code").textContent);
      button.textContent = "Copied";
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  function tries(details) {
    const form = details.querySelector("form");
    const send = form.querySelector("button");
    const outcome = form.querySelector(".outcome");
    const answer = form.querySelector("pre");
    let stop;
    details.hidden = false;
    // The reader types the key once for all forms of the page. The script stores it nowhere.
    form.elements.key.addEventListener("change", ({ target }) => {
      for (const other of document.querySelectorAll(".try [name=key]")) other.value = target.value;
    });
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      if (stop !== undefined) return stop.abort();
      stop = new AbortController();
      send.textContent = "Stop";
      answer.hidden = true;
      outcome.textContent = "Sending …";
      try {
        await show(await fetch(...requestOf(form, stop.signal)));
      } catch (error) {
        outcome.textContent =
          error.name === "AbortError" ? `${outcome.textContent} · stopped` : `No answer: ${error.message}`;
      }
      stop = undefined;
      send.textContent = "Send";
    });

    async function show(response) {
      outcome.textContent = `HTTP ${response.status} · ${response.headers.get("x-request-id") ?? ""}`;
      answer.hidden = false;
      const code = answer.querySelector("code");
      code.textContent = "";
      const decoder = new TextDecoder();
      const reader = response.body.getReader();
      for (let { done, value } = await reader.read(); !done; { done, value } = await reader.read()) {
        code.textContent += decoder.decode(value, { stream: true });
      }
      try {
        code.textContent = JSON.stringify(JSON.parse(code.textContent), undefined, 2);
      } catch {}
    }
  }

  /** Builds the arguments of `fetch` from the form. It leaves out empty fields. */
  function requestOf(form, signal) {
    const url = new URL(form.action);
    const headers = { authorization: `Bearer ${form.elements.key.value.trim()}` };
    for (const { name, value, dataset } of form.querySelectorAll("[data-in]")) {
      if (value === "") continue;
      if (dataset.in === "query") url.searchParams.set(name, value);
      else headers[name] = value;
    }
    const body = form.elements.body?.value;
    if (body !== undefined) headers["content-type"] = "application/json";
    return [url, { method: form.getAttribute("method").toUpperCase(), headers, body, signal }];
  }
}
