import { AxeBuilder } from "@axe-core/playwright";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { expect } from "vitest";

/** Markup, directions and controls that a page must show as text. */
export const hostile = `<img src=x onerror="document.title='owned'">\u202egnp.exe`;

export interface Visit {
  readonly page: Page;
  /** What the browser's console and the page complained of, and what they should not have asked for. */
  readonly trouble: string[];
  readonly context: BrowserContext;
}

/**
 * Opens an address in a context of its own. Everything must come from `origins`, and no address may have a secret:
 * an API key, an access token, or a signed token.
 */
export async function visit(
  browser: Browser,
  address: string,
  { origins = [], ...options }: { readonly origins?: readonly string[] } & Parameters<Browser["newContext"]>[0] = {},
): Promise<Visit> {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  const trouble: string[] = [];
  page.on("console", (message) => {
    if (message.type() === "error" || message.type() === "warning") trouble.push(message.text());
  });
  page.on("pageerror", (error) => trouble.push(error.message));
  const allowed = [new URL(address).origin, ...origins];
  page.on("request", (request) => {
    if (!allowed.includes(new URL(request.url()).origin)) trouble.push(`loads ${request.url()}`);
    if (/wp_|eyJ/.test(request.url())) trouble.push(`has a secret in an address: ${request.url()}`);
  });
  await page.goto(address);
  return { page, trouble, context };
}

/** Whether the page shows `hostile` as text: it is there, it made no element, and it hides or turns nothing. */
export async function expectPlain(page: Page, times = 1): Promise<void> {
  await expect.poll(() => page.getByText("<img src=x").count()).toBeGreaterThanOrEqual(times);
  const found = await page.evaluate<readonly [number, boolean]>(`[
    document.querySelectorAll("img[src='x'], [onerror]").length,
    [document.body.textContent, ...Array.from(document.querySelectorAll("[title], [aria-label]"), (at) => at.title + at.ariaLabel)]
      .some((text) => text.includes("\u202e")),
  ]`);
  expect([...found, await page.title()]).toEqual([0, false, "Ingest console"]);
}

/** What is wrong with the page's parts. */
export async function axeFindings(page: Page, rules: "all" | "colours" | "parts"): Promise<string[]> {
  const axe = new AxeBuilder({ page });
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
