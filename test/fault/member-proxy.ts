import { once } from "node:events";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

type IsCut = (pid: number) => boolean;

/** The two ends of a connection to a member, and whether the network between them is cut. */
interface Link {
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
  /** Whether the route of this process to the member is cut. Undefined: no route is. */
  #isCut: IsCut | undefined;
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

  /** Cuts and heals: from now on exactly the routes of these processes among `findable` are cut. */
  cut(isCut: IsCut | undefined): void {
    this.#isCut = isCut;
    this.#set(this.#links);
  }

  close(): void {
    this.#server.close();
    for (const { caller, member } of this.#links) {
      caller.destroy();
      member?.destroy();
    }
  }

  #serve(caller: Socket): void {
    const link: Link = { caller, member: undefined, held: true };
    this.#links.add(link);
    caller.setNoDelay(true);
    caller.pause();
    this.#watch(link, caller);
    this.#set([link]);
  }

  #set(links: Iterable<Link>): void {
    const isCut = this.#isCut;
    // It takes a while to find the processes, so it happens only during a cut.
    const processes = isCut === undefined ? undefined : processesAt(this.port);
    for (const link of links) {
      const pid = processes?.get(link.caller.remotePort);
      if (pid !== undefined && isCut?.(pid) === true) this.#hold(link);
      else this.#carry(link);
    }
  }

  #hold(link: Link): void {
    link.held = true;
    link.caller.pause();
    link.member?.pause();
  }

  #carry(link: Link): void {
    link.held = false;
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

/** The processes among `findable` that have a connection to a port of this machine, by the ports of their own ends. */
function processesAt(port: number): ReadonlyMap<number | undefined, number> {
  const address = (one: number) => `0100007F:${one.toString(16).toUpperCase().padStart(4, "0")}`;
  const pids = new Map([...findable].flatMap((pid) => socketsOf(pid).map((socket) => [socket, pid])));
  const found = new Map<number | undefined, number>();
  for (const line of readFileSync("/proc/net/tcp", "utf8").split("\n")) {
    if (!line.includes(` ${address(port)} `)) continue;
    const [, local = "", remote, , , , , , , inode] = line.trim().split(/\s+/);
    const pid = pids.get(`socket:[${inode}]`);
    if (remote === address(port) && pid !== undefined) found.set(Number.parseInt(local.slice(-4), 16), pid);
  }
  return found;
}

/** Processes that `MemberProxy` tells apart; all others count as one. */
export const findable = new Set<number>();

function socketsOf(pid: number): string[] {
  try {
    return readdirSync(`/proc/${pid}/fd`).flatMap((fd) => linkOf(pid, fd) ?? []);
  } catch {
    return [];
  }
}

function linkOf(pid: number, fd: string): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/fd/${fd}`);
  } catch {
    return undefined;
  }
}
