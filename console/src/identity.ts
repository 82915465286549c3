import { createContext, useContext } from "react";
import { type Identity, Role } from "../../src/gen/ingest/admin/v1/admin_pb.js";

export const IdentityContext = createContext<Identity | undefined>(undefined);

export function useIdentity(): Identity {
  const identity = useContext(IdentityContext);
  if (identity === undefined) throw new Error("only screens of a session use an identity");
  return identity;
}

/** What the credential may do: nothing that would fail is shown. */
export function useMay(): { readonly change: boolean; readonly operate: boolean } {
  const { role } = useIdentity();
  return { change: role !== Role.VIEWER, operate: role === Role.OPERATOR };
}
