/** The peers' collection and its indexes: one for each listing of the service. */
export const peerEvents = {
  name: "events",
  indexes: [
    { key: { organizationId: 1, timestamp: -1, _id: -1 } },
    { key: { organizationId: 1, workerId: 1, timestamp: -1, _id: -1 } },
  ],
} as const;
