import { type Fault, unavailable } from "../errors.ts";

/** For how long after its last call an organisation counts as active, in milliseconds. */
const activeMs = 1_000;

/** Which organisations call at present. */
export class Activity {
  #latest = { name: "", atMs: Number.NEGATIVE_INFINITY };
  /** The latest call of another organisation than the latest. */
  #other = this.#latest;

  note(organization: string): void {
    const atMs = performance.now();
    if (this.#latest.name === organization) this.#latest.atMs = atMs;
    else {
      this.#other = this.#latest;
      this.#latest = { name: organization, atMs };
    }
  }

  /** Whether another organisation is active. */
  hasOthers(organization: string): boolean {
    const other = this.#latest.name === organization ? this.#other : this.#latest;
    return other.name !== "" && performance.now() - other.atMs < activeMs;
  }
}

export interface FairTurnsOptions {
  /** Cost of the work that one organisation has under way while others are active. A single piece may cost more. */
  readonly sharedCostMax: number;
  /** The same while it is alone. */
  readonly aloneCostMax: number;
  /**
   * Work from this cost on begins one piece in a turn of the event loop while others are active. After it the organisation
   * rests for `restTimes` as long as the work took.
   */
  readonly heavyCost: number;
  readonly restTimes: number;
  /** Work from this cost on does so always, and at most `largeMax` pieces of it are under way, of all organisations. */
  readonly largeCost: number;
  readonly largeMax: number;
  /** Work waits at most so long for its turn, in milliseconds. */
  readonly waitMs: number;
}

/** A piece of work that waits for its turn or is under way. */
export interface Turn {
  /** It has ended, or nobody waits for it. May be called again. */
  leave(): void;
}

interface Piece {
  readonly organization: Organization;
  readonly cost: number;
  readonly begin: (refusal: Fault | undefined) => void;
  state: "waiting" | "begun" | "left";
  begunMs: number;
  timer: NodeJS.Timeout | undefined;
}

interface Organization {
  readonly name: string;
  readonly waiting: Set<Piece>;
  cost: number;
  /** How many pieces of heavy work it rests for; none begins meanwhile. */
  rests: number;
}

/** Work that kept the event loop busy for longer is followed by a pause as long, in milliseconds. */
const longMs = 25;

/**
 * Lets organisations take turns at work that keeps others waiting: large bodies to be decoded, pages to be read. One that
 * is alone does as much at once as it likes. While others are active its work is bounded, and the rest waits in order.
 */
export class FairTurns {
  readonly #activity: Activity;
  readonly #options: FairTurnsOptions;
  readonly #organizations = new Map<string, Organization>();
  /** Those with work that waits, in the order of their turns. */
  readonly #turns = new Set<Organization>();
  #large = 0;
  /** Heavy work has begun in this turn of the event loop. */
  #hasBegun = false;

  constructor(activity: Activity, options: FairTurnsOptions) {
    this.#activity = activity;
    this.#options = options;
  }

  /**
   * Asks for a turn. `begin` is called when it comes, perhaps at once, or with the fault of work that has waited too long.
   */
  enter(name: string, cost: number, begin: (refusal: Fault | undefined) => void): Turn {
    const organization = this.#organizations.get(name) ?? { name, waiting: new Set(), cost: 0, rests: 0 };
    this.#organizations.set(name, organization);
    const piece: Piece = { organization, cost, begin, state: "waiting", begunMs: 0, timer: undefined };
    // Small work of one that is alone need not wait behind its own large work.
    const isNext = organization.waiting.size === 0 || !this.#activity.hasOthers(name);
    if (isNext && this.#mayBegin(piece)) this.#begin(piece);
    else {
      organization.waiting.add(piece);
      this.#turns.add(organization);
      piece.timer = setTimeout(() => {
        this.#leave(piece);
        begin(unavailable(new Error(`no turn within ${this.#options.waitMs} ms`)));
      }, this.#options.waitMs);
    }
    return { leave: () => this.#leave(piece) };
  }

  /** Does the work when its turn comes. @throws Fault unavailable when it has waited too long. */
  async run<T>(name: string, cost: number, work: () => Promise<T>): Promise<T> {
    const begun = Promise.withResolvers<void>();
    const turn = this.enter(name, cost, (refusal) => (refusal === undefined ? begun.resolve() : begun.reject(refusal)));
    await begun.promise;
    try {
      return await work();
    } finally {
      turn.leave();
    }
  }

  #mayBegin({ organization, cost }: Piece): boolean {
    const { sharedCostMax, aloneCostMax, heavyCost, largeCost, largeMax } = this.#options;
    const isShared = this.#activity.hasOthers(organization.name);
    const costMax = isShared ? sharedCostMax : aloneCostMax;
    if (organization.cost > 0 && organization.cost + cost > costMax) return false;
    if (cost >= largeCost && (this.#hasBegun || this.#large >= largeMax)) return false;
    if (!isShared || cost < heavyCost) return true;
    return !this.#hasBegun && organization.rests === 0;
  }

  #begin(piece: Piece): void {
    const { organization, cost } = piece;
    clearTimeout(piece.timer);
    piece.state = "begun";
    piece.begunMs = performance.now();
    organization.cost += cost;
    if (cost >= this.#options.largeCost) this.#large++;
    const isAlone = !this.#activity.hasOthers(organization.name);
    if (cost < (isAlone ? this.#options.largeCost : this.#options.heavyCost)) return piece.begin(undefined);
    this.#hasBegun = true;
    piece.begin(undefined);
    setImmediate(() => {
      const goOn = () => {
        this.#hasBegun = false;
        this.#next();
      };
      const busyMs = performance.now() - piece.begunMs;
      if (isAlone && busyMs < longMs) goOn();
      else setTimeout(goOn, busyMs);
    });
  }

  #leave(piece: Piece): void {
    const { organization, cost, state } = piece;
    if (state === "left") return;
    piece.state = "left";
    clearTimeout(piece.timer);
    if (state === "waiting") {
      organization.waiting.delete(piece);
      if (organization.waiting.size === 0) this.#turns.delete(organization);
    } else {
      organization.cost -= cost;
      if (cost >= this.#options.largeCost) this.#large--;
      if (cost >= this.#options.heavyCost && this.#activity.hasOthers(organization.name)) this.#rest(piece);
    }
    this.#forget(organization);
    this.#next();
  }

  /** The organisation leaves time to the others. */
  #rest({ organization, begunMs }: Piece): void {
    organization.rests++;
    setTimeout(
      () => {
        organization.rests--;
        this.#forget(organization);
        this.#next();
      },
      this.#options.restTimes * (performance.now() - begunMs),
    );
  }

  #forget({ name, cost, waiting, rests }: Organization): void {
    if (cost === 0 && waiting.size === 0 && rests === 0) this.#organizations.delete(name);
  }

  /** Begins what may begin, one piece an organisation in turn. */
  #next(): void {
    for (let isMore = true; isMore;) {
      isMore = false;
      for (const organization of [...this.#turns]) {
        const [piece] = organization.waiting;
        if (piece === undefined || !this.#mayBegin(piece)) continue;
        organization.waiting.delete(piece);
        this.#turns.delete(organization);
        if (organization.waiting.size > 0) this.#turns.add(organization);
        this.#begin(piece);
        isMore = true;
      }
    }
  }
}
