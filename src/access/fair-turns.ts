import { type Fault, unavailable } from "../errors.ts";

/** An organisation stays active for this long after its last call, in milliseconds. */
const activeMs = 1_000;

/** Knows which organisations are active. */
export class Activity {
  #latest = { name: "", atMs: Number.NEGATIVE_INFINITY };
  /** The latest call of any other organisation. */
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
  /** Limit on the cost of one organisation's running tasks while others are active; one task may cost more. */
  readonly sharedCostMax: number;
  /** The same limit while no other organisation is active. */
  readonly aloneCostMax: number;
  /**
   * A task of this cost or more is heavy. While others are active, one heavy task starts per turn of the event loop.
   * Then the organisation pauses for `restTimes` as long as the task took.
   */
  readonly heavyCost: number;
  readonly restTimes: number;
  /** A task of this cost or more is always heavy. At most `largeMax` of them run at once, over all organisations. */
  readonly largeCost: number;
  readonly largeMax: number;
  /** Longest wait for a turn, in milliseconds. */
  readonly waitMs: number;
}

/** A task that waits for its turn or runs. */
export interface Turn {
  /** Ends the task or cancels it. A second call does nothing. */
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
  /** Pending pauses after heavy tasks. Nothing starts until they end. */
  rests: number;
}

/** A task that blocks the event loop for longer is followed by an equal pause, in milliseconds. */
const longMs = 25;

/**
 * Lets organisations take turns at work that delays others, such as decoding large bodies and reading pages. A single
 * active organisation runs without a limit. With others active each one is limited, and the rest of its work queues.
 */
export class FairTurns {
  readonly #activity: Activity;
  readonly #options: FairTurnsOptions;
  readonly #organizations = new Map<string, Organization>();
  /** Organisations with queued work, in the order of their turns. */
  readonly #turns = new Set<Organization>();
  #large = 0;
  #cost = 0;
  /** Whether a heavy task has started in this turn of the event loop. */
  #hasBegun = false;

  constructor(activity: Activity, options: FairTurnsOptions) {
    this.#activity = activity;
    this.#options = options;
  }

  /** Cost of the tasks under way, and how many wait. */
  get counts(): { readonly cost: number; readonly waiting: number } {
    let waiting = 0;
    for (const organization of this.#turns) waiting += organization.waiting.size;
    return { cost: this.#cost, waiting };
  }

  /**
   * Asks for a turn. Calls `begin` when it comes, perhaps at once, or with a fault after too long a wait.
   */
  enter(name: string, cost: number, begin: (refusal: Fault | undefined) => void): Turn {
    const organization = this.#organizations.get(name) ?? { name, waiting: new Set(), cost: 0, rests: 0 };
    this.#organizations.set(name, organization);
    const piece: Piece = { organization, cost, begin, state: "waiting", begunMs: 0, timer: undefined };
    // A single active organisation need not queue small tasks behind its large ones.
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

  /** Runs the work in its turn. @throws Fault unavailable after too long a wait. */
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
    this.#cost += cost;
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
      this.#cost -= cost;
      if (cost >= this.#options.largeCost) this.#large--;
      if (cost >= this.#options.heavyCost && this.#activity.hasOthers(organization.name)) this.#rest(piece);
    }
    this.#forget(organization);
    this.#next();
  }

  /** Pauses the organisation, so that others get time. */
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

  /** Starts every task that may run, one per organisation in turn. */
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
