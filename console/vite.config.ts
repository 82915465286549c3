import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

/** Addresses are relative, so the console also works behind a proxy that puts the service below a path. */
export default defineConfig({
  base: "./",
  plugins: [react()],
  build: {
    outDir: "dist",
    emptyOutDir: true,
    target: "es2023",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: {
    // `npm run dev` in this folder, beside `npm run dev` of the service.
    proxy: Object.fromEntries(
      ["/ingest.admin.v1.Admin", "/ingest.v1.Timeline", "/ingest.v1.Ingest", "/console/settings.json"].map((path) => [
        path,
        process.env.INGEST_URL ?? "http://localhost:8080",
      ]),
    ),
  },
});
