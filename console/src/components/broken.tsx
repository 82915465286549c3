import { Component, type ReactNode } from "react";
import { text } from "../text.ts";
import { Empty } from "./states.tsx";

interface BrokenProps {
  /** The place of what is shown. At another place is something else, which may be whole. */
  readonly at?: string;
  /** Stands there instead of what is broken. */
  readonly instead?: ReactNode;
  readonly children: ReactNode;
}

interface BrokenState {
  readonly isBroken: boolean;
  readonly at: string | undefined;
}

/** Shows what cannot be loaded or drawn as an error. A screen's file may be gone after an upgrade of the service. */
export class Broken extends Component<BrokenProps, BrokenState> {
  override state: BrokenState = { isBroken: false, at: this.props.at };

  static getDerivedStateFromError(): Partial<BrokenState> {
    return { isBroken: true };
  }

  static getDerivedStateFromProps({ at }: BrokenProps, state: BrokenState): BrokenState | null {
    return at === state.at ? null : { isBroken: false, at };
  }

  override render() {
    const { instead, children } = this.props;
    if (!this.state.isBroken) return children;
    if (instead !== undefined) return instead;
    return (
      <Empty title={text.states.broken} detail={text.states.brokenDetail}>
        <button type="button" onClick={() => location.reload()}>
          {text.states.reload}
        </button>
      </Empty>
    );
  }
}
