import { useEffect, useState } from "react";

const settledMs = 400;

/** A value once it has stayed the same for a moment, so that not each key stroke costs a call. */
export function useSettled<T>(value: T): T {
  const [settled, setSettled] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setSettled(value), settledMs);
    return () => clearTimeout(timer);
  }, [value]);
  return settled;
}
