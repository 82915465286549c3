import type { CommandStartedEvent } from "mongodb";
import { apps } from "../../src/store/apps.ts";
import { keys } from "../../src/store/keys.ts";
import { organizations } from "../../src/store/organizations.ts";
import { revisions } from "../../src/store/revisions.ts";
import { workers } from "../../src/store/workers.ts";

/** Instances remember objects of these collections, so they must hear of each change. */
const remembered = new Set([organizations, apps, keys, workers].map(({ name }) => name));
/** No `delete`: only erased workers' names go in transactions, and no instance remembers those. */
const writes = new Set(["insert", "update", "findAndModify"]);

/** Gathers the transactions that change what instances remember, but do not tell them. */
export class NewsWatch {
  /** By transaction: what it has written to. */
  readonly #open = new Map<string, Set<string>>();
  readonly #silent: string[] = [];

  readonly hear = ({ command, commandName }: Pick<CommandStartedEvent, "command" | "commandName">): void => {
    if (command.autocommit !== false) return;
    const transaction = `${String(command.lsid.id.toString("hex"))}/${String(command.txnNumber)}`;
    if (writes.has(commandName)) {
      const written = this.#open.get(transaction) ?? new Set();
      this.#open.set(transaction, written.add(String(command[commandName])));
    }
    if (commandName !== "commitTransaction") return;
    const written = [...(this.#open.get(transaction) ?? [])];
    this.#open.delete(transaction);
    if (written.some((name) => remembered.has(name)) && !written.includes(revisions.name)) {
      this.#silent.push(written.join(", "));
    }
  };

  /** @throws if no instance would have heard of a change. */
  check(): void {
    if (this.#silent.length > 0) throw new Error(`no news of changes to:\n${this.#silent.join("\n")}`);
  }
}
