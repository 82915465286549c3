# Only the service, without mongod: set MONGODB_URI. A read-only root has no room for a database.
#   docker build --tag ingest .
#   docker run --read-only --publish 8080:8080 --env MONGODB_URI=mongodb://… ingest
FROM node:24.21.0-bookworm-slim AS build
WORKDIR /src
COPY package.json package-lock.json ./
COPY console/package.json console/
# The build needs no install scripts of packages, so none run.
RUN npm ci --ignore-scripts --no-audit --no-fund
COPY . .
RUN npm run build && npm prune --omit=dev --ignore-scripts --workspaces=false --no-audit --no-fund

FROM node:24.21.0-bookworm-slim
ENV NODE_ENV=production
WORKDIR /app
COPY --from=build /src/package.json ./
COPY --from=build /src/node_modules ./node_modules
COPY --from=build /src/dist ./dist
COPY --from=build /src/openapi ./openapi
COPY --from=build /src/console/dist ./console/dist
# The image's user `node`. The files above belong to root, so the process cannot change them.
USER 1000
# For callers, and for operators (which listens on loopback unless ADMIN_HOST says otherwise).
EXPOSE 8080 8081
# Use the operators' port if callers need a certificate.
HEALTHCHECK --interval=10s --timeout=3s --start-period=15s --retries=3 \
  CMD ["node", "-e", "process.env.NODE_TLS_REJECT_UNAUTHORIZED = 0; fetch(`http${process.env.TLS_CERT ? 's' : ''}://127.0.0.1:${process.env.TLS_CLIENT_CA ? process.env.ADMIN_PORT || 8081 : process.env.PORT || 8080}/healthz`).then(({ ok }) => process.exit(ok ? 0 : 1), () => process.exit(1))"]
ENTRYPOINT ["node", "--disable-sigusr1", "--max-semi-space-size=16", "--heap-growing-percent=60", "dist/cli.js"]
CMD ["serve"]
