import { AxeBuilder } from "@axe-core/playwright";
import type { Browser, Page } from "playwright-core";
import { expect } from "vitest";

/** Markup, directions and controls that a page must show as text. */
export const hostile = `<img src=x onerror="document.title='owned'">\u202egnp.exe`;

export interface Visit {
  readonly page: Page;
  /** What the browser's console and the page complained of, and what they should not have asked for. */
  readonly trouble: string[];
}

/**
 * A page that the tests of a file use one after another, because a new one takes Chromium a second of work. A visit
 * finds nothing of the one before, except the browser's cache.
 */
export class SharedPage {
  readonly #page: Page;
  #trouble: string[] = [];
  #origins: readonly string[] = [];

  private constructor(page: Page) {
    this.#page = page;
    page.setDefaultTimeout(60_000);
    page.on("console", (message) => {
      if (message.type() === "error" || message.type() === "warning") this.#trouble.push(message.text());
    });
    page.on("pageerror", (error) => this.#trouble.push(error.message));
    page.on("request", (request) => {
      if (!this.#origins.includes(new URL(request.url()).origin)) this.#trouble.push(`loads ${request.url()}`);
      if (/wp_|eyJ/.test(request.url())) this.#trouble.push(`has a secret in an address: ${request.url()}`);
    });
  }

  static async open(browser: Browser): Promise<SharedPage> {
    return new SharedPage(await browser.newPage({ viewport: { width: 1280, height: 900 } }));
  }

  /**
   * Opens an address. Everything must come from its origin and from `origins`, and no address may have a secret: an API
   * key, an access token, or a signed token.
   */
  async visit(address: string, origins: readonly string[] = []): Promise<Visit> {
    if (this.#page.url() !== blank) await this.#page.evaluate("sessionStorage.clear(), localStorage.clear()");
    // Otherwise an address with another hash would not load the page again.
    await this.#page.goto(blank);
    this.#trouble = [];
    this.#origins = [new URL(address).origin, ...origins];
    await this.#page.goto(address);
    return { page: this.#page, trouble: this.#trouble };
  }
}

const blank = "about:blank";

/** Whether the page shows `hostile` as text: it is there, it made no element, and it hides or turns nothing. */
export async function expectPlain(page: Page, times = 1): Promise<void> {
  await expect.poll(() => page.getByText("<img src=x").count()).toBeGreaterThanOrEqual(times);
  const found = await page.evaluate<readonly [number, boolean]>(`[
    document.querySelectorAll("img[src='x'], [onerror]").length,
    [document.body.textContent, ...Array.from(document.querySelectorAll("[title], [aria-label]"), (at) => at.title + at.ariaLabel)]
      .some((text) => text.includes("\u202e")),
  ]`);
  // Its own titles are a screen's name and the console's.
  expect([...found, await page.title()]).toEqual([
    0,
    false,
    expect.stringMatching(/^(?:[A-Z][a-z ]+ · )?Ingest console$/),
  ]);
}

/** What is wrong with the page's parts. */
export async function axeFindings(page: Page, rules: "all" | "colours" | "parts"): Promise<string[]> {
  // Otherwise it opens a further page each time, for frames of other origins. Here are none.
  const axe = new AxeBuilder({ page }).setLegacyMode();
  if (rules === "colours") axe.withRules("color-contrast");
  if (rules === "parts") axe.disableRules("color-contrast");
  const { violations } = await axe.analyze();
  return violations.map(({ id, nodes }) => `${id} ${nodes[0]?.html.slice(0, 120)}`);
}

interface Focus {
  readonly name: string;
  /** Whether an element of the page has it. */
  readonly isSomewhere: boolean;
  /** Whether its user sees where it is. */
  readonly isVisible: boolean;
}

const focusOf = `(() => {
  const at = document.activeElement;
  const { top, bottom, left, width } = at.getBoundingClientRect();
  const over = document.elementFromPoint(left + Math.min(width / 2, 20), (Math.max(top, 0) + Math.min(bottom, innerHeight)) / 2);
  const name = at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.textContent;
  const hasRing = at.matches(":focus-visible") && getComputedStyle(at).outlineStyle !== "none";
  return { name: name.trim(), isSomewhere: at !== document.body, isVisible: hasRing && at.contains(over) };
})()`;

/** Somebody who has no mouse. */
export class Keyboard {
  readonly #page: Page;
  /** Keys so far; a text that is typed or pasted counts as one. */
  keys = 0;

  constructor(page: Page) {
    this.#page = page;
  }

  async press(key: string): Promise<void> {
    this.keys++;
    await this.#page.keyboard.press(key);
  }

  async type(text: string): Promise<void> {
    this.keys++;
    await this.#page.keyboard.insertText(text);
  }

  focus(): Promise<Focus> {
    return this.#page.evaluate<Focus>(focusOf);
  }

  /** Waits until the element of this name has the focus, so that its user sees it. */
  async isAt(name: RegExp): Promise<void> {
    await expect.poll(() => this.focus()).toMatchObject({ name: expect.stringMatching(name), isVisible: true });
  }

  /** Presses Tab until the element of this name has the focus. */
  async to(name: RegExp): Promise<void> {
    for (let presses = 0; presses < 80; presses++) {
      await this.press("Tab");
      const focus = await this.focus();
      // After the last element, the browser's own controls have it.
      if (focus.isSomewhere) expect(focus).toMatchObject({ isVisible: true });
      if (name.test(focus.name)) return;
    }
    throw new Error(`the Tab key does not reach ${name.source}`);
  }

  async open(name: RegExp): Promise<void> {
    await this.to(name);
    await this.press("Enter");
  }
}
