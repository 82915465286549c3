// Shows the OpenAPI document. Nothing is fetched from elsewhere: no fonts, no proxy, no telemetry.
/* global Scalar */
Scalar.createApiReference("#reference", {
  url: "/openapi/v1.yaml",
  authentication: { preferredSecurityScheme: "bearer" },
  agent: { disabled: true },
  mcp: { disabled: true },
  hideClientButton: true,
  persistAuth: false,
  showDeveloperTools: "never",
  telemetry: false,
  withDefaultFonts: false,
});
