import { Component, type ReactNode } from "react";
import { text } from "../text.ts";
import { Empty } from "./states.tsx";

/** Shows a screen that cannot be loaded or drawn as an error. Its file may be gone after an upgrade of the service. */
export class Broken extends Component<{ readonly children: ReactNode }> {
  override state = { isBroken: false };

  static getDerivedStateFromError() {
    return { isBroken: true };
  }

  override render() {
    if (!this.state.isBroken) return this.props.children;
    return (
      <Empty title={text.states.broken} detail={text.states.brokenDetail}>
        <button type="button" onClick={() => location.reload()}>
          {text.states.reload}
        </button>
      </Empty>
    );
  }
}
