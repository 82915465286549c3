import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

/** The two ends of a connection to a member, and whether the network between them is cut. */
interface Link {
  /** The process that opened it. */
  readonly pid: number | undefined;
  readonly caller: Socket;
  member: Socket | undefined;
  held: boolean;
}

/**
 * The only route to one member of a replica set, for its peers and for clients. A cut works like that of a network:
 * connections stay open but carry nothing. When it heals, the held data arrives.
 */
export class MemberProxy {
  readonly #server: Server;
  readonly #links = new Set<Link>();
  /** Whether the route of this process to the member is cut. */
  #isCut: (pid: number | undefined) => boolean = () => false;
  readonly #memberPort: number;

  private constructor(memberPort: number) {
    this.#memberPort = memberPort;
    this.#server = createServer((socket) => this.#serve(socket));
  }

  /** @param memberPort the member's own port. */
  static async start(memberPort: number): Promise<MemberProxy> {
    const proxy = new MemberProxy(memberPort);
    proxy.#server.listen(0, "127.0.0.1");
    await once(proxy.#server, "listening");
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Cuts and heals: from now on exactly the routes of these processes are cut. */
  cut(isCut: (pid: number | undefined) => boolean): void {
    this.#isCut = isCut;
    for (const link of this.#links) this.#set(link);
  }

  close(): void {
    this.#server.close();
    for (const { caller, member } of this.#links) {
      caller.destroy();
      member?.destroy();
    }
  }

  #serve(caller: Socket): void {
    const link: Link = { pid: processOf(caller.remotePort, this.port), caller, member: undefined, held: true };
    this.#links.add(link);
    caller.setNoDelay(true);
    caller.pause();
    this.#watch(link, caller);
    this.#set(link);
  }

  #set(link: Link): void {
    link.held = this.#isCut(link.pid);
    if (link.held) {
      link.caller.pause();
      link.member?.pause();
      return;
    }
    if (link.caller.destroyed || link.member?.destroyed === true) return this.#end(link);
    link.member ??= this.#reach(link);
    link.caller.resume();
    link.member.resume();
  }

  #reach(link: Link): Socket {
    const member = connect({ host: "127.0.0.1", port: this.#memberPort });
    member.setNoDelay(true);
    this.#watch(link, member);
    member.on("data", (chunk) => link.caller.write(chunk));
    link.caller.on("data", (chunk) => member.write(chunk));
    return member;
  }

  #watch(link: Link, socket: Socket): void {
    socket.on("error", () => {});
    // The other end of a cut network does not learn of it.
    socket.on("close", () => link.held || this.#end(link));
  }

  #end(link: Link): void {
    this.#links.delete(link);
    link.caller.destroy();
    link.member?.destroy();
  }
}

/** The process among `findable` whose socket connects these ports of this machine. */
function processOf(from: number | undefined, to: number): number | undefined {
  if (from === undefined) return undefined;
  const addressOf = (port: number) => `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  // Both ports, because several connections, also old ones, may use one port.
  const connection = ` ${addressOf(from)} ${addressOf(to)} `;
  const line = readFileSync("/proc/net/tcp", "utf8")
    .split("\n")
    .find((one) => one.includes(connection));
  const inode = line?.trim().split(/\s+/)[9];
  return inode === undefined ? undefined : [...findable].find((pid) => holds(pid, inode));
}

/** Processes that `MemberProxy` tells apart; all others count as one. */
export const findable = new Set<number>();

function holds(pid: number, inode: string): boolean {
  try {
    return readdirSync(`/proc/${pid}/fd`).some((fd) => linkOf(pid, fd) === `socket:[${inode}]`);
  } catch {
    return false;
  }
}

function linkOf(pid: number, fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return undefined;
  }
}
