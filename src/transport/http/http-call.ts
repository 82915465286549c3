import type { IncomingHttpHeaders, ServerResponse } from "node:http";
import type { Code } from "@connectrpc/connect";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import { type Fault, faultFrom } from "../../errors.ts";
import type { Exchange } from "../../exchange.ts";
import type { AdapterOptions } from "./options.ts";
import type { NodeRequest, NodeResponse, Route, RouteReply, RouteRequest, StreamReply } from "./route.ts";
import type { BodyBudget, BodyLease } from "./body-budget.ts";
import { destroy, drained, endAnswer, isGone, isRead, keepsAlive, readWhole } from "./body.ts";
import type { Cors } from "../rest/cors.ts";
import { dressedError, type FaultOf, toRestError } from "../rpc/errors.ts";
import { answerHeaders, jsonType } from "./answer-headers.ts";
import { serveRpc } from "../rpc/universal.ts";

const ignore = () => {};

export interface HttpCallOptions extends Pick<AdapterOptions, "publicUrl" | "now" | "onEnd" | "refusalPage"> {
  readonly cors: Cors | undefined;
  readonly budget: BodyBudget;
  /** How long a caller may count on its connection; Node says it only of time limits of its own. */
  readonly keepAlive: string;
}

/** One request and its answer, over any protocol; what a route sees of the request. */
export class HttpCall implements RouteRequest {
  readonly method: string;
  readonly path: string;
  readonly query: string;
  readonly #request: NodeRequest;
  readonly #response: NodeResponse;
  readonly #exchange: Exchange;
  readonly #options: HttpCallOptions;
  readonly #startedMs = performance.now();
  #code: Code | undefined;
  #hold: BodyLease | undefined;
  #isEnded = false;

  constructor(
    request: NodeRequest,
    response: NodeResponse,
    path: string,
    query: string,
    exchange: Exchange,
    options: HttpCallOptions,
  ) {
    this.method = request.method ?? "";
    this.path = path;
    this.query = query;
    this.#request = request;
    this.#response = response;
    this.#exchange = exchange;
    this.#options = options;
    response.on("close", () => this.#ended());
    response.on("error", ignore);
    request.on("error", ignore);
  }

  get headers(): IncomingHttpHeaders {
    return this.#request.headers;
  }

  readBody(bytesMax: number): Promise<Buffer> {
    return readWhole(this.#request, bytesMax, this.#holdBody());
  }

  #holdBody(): BodyLease {
    this.#hold ??= this.#options.budget.open(
      () => destroy(this.#request),
      () => this.#exchange.caller?.organizationId ?? "",
    );
    // The caller went away before its body was asked for: of its end nobody will hear again.
    if (this.#isEnded) this.#hold.release();
    return this.#hold;
  }

  onClose(work: () => void): void {
    if (this.#isEnded) return work();
    this.#response.on("close", work);
  }

  serve(route: Route): void {
    try {
      const reply = route.handle(this, this.#exchange);
      if (!(reply instanceof Promise)) return this.send(reply);
      reply.then((late) => this.send(late)).catch((error: unknown) => this.fail(error));
    } catch (error) {
      this.fail(error);
    }
  }

  serveRpc(handler: UniversalHandler, faultOf: FaultOf): void {
    const exchange = this.#exchange;
    const { publicUrl, now } = this.#options;
    serveRpc(handler, this.#request, this.#response as ServerResponse, exchange, {
      dress: (error) => dressedError(error, exchange, publicUrl, faultOf),
      headers: () => this.#headers(),
      refuse: (fault) => this.#refusal(fault),
      hold: this.#holdBody(),
      remainingMs: exchange.deadlineMs === undefined ? undefined : exchange.deadlineMs - now(),
    })
      .then((code) => (this.#code = code))
      .catch((error: unknown) => {
        exchange.fault ??= faultFrom(error);
        if (this.#response.headersSent) destroy(this.#response);
        else this.fail(error);
      });
  }

  /** Answers with an error in the reference's shape, if nothing was answered yet. */
  fail(error: unknown): void {
    if (this.#response.headersSent) return;
    try {
      const fault = faultFrom(error);
      const reply = this.#refusal(fault);
      this.send(this.#options.refusalPage?.(this, fault) ?? reply);
    } catch {
      destroy(this.#response);
    }
  }

  send({ status, headers, body }: RouteReply | StreamReply): void {
    const response = this.#response as ServerResponse;
    this.#hold?.done();
    const all = this.#headers();
    if (headers !== undefined) Object.assign(all, headers);
    if (typeof body !== "string" && !(body instanceof Uint8Array)) {
      response.writeHead(status, all);
      this.#stream(body).catch((error: unknown) => {
        this.#exchange.fault ??= faultFrom(error);
        destroy(response);
      });
      return;
    }
    if (status !== 204 && status !== 304) {
      all["content-type"] ??= jsonType;
      all["content-length"] = String(typeof body === "string" ? Buffer.byteLength(body) : body.byteLength);
    }
    response.writeHead(status, all);
    const sent = this.method === "HEAD" ? undefined : body;
    if (isRead(this.#request)) return void response.end(sent);
    if (sent !== undefined) response.write(sent);
    endAnswer(this.#request, response);
  }

  async #stream(body: AsyncGenerator<string, void>): Promise<void> {
    const response = this.#response as ServerResponse;
    // A generator that has not begun has no end either.
    if (this.method === "HEAD") await body.next().then(() => body.return());
    for await (const chunk of body) {
      if (isGone(response)) return;
      if (!response.write(chunk)) await drained(response);
    }
    endAnswer(this.#request, response);
  }

  #refusal(fault: Fault): RouteReply {
    this.#exchange.fault = fault;
    return toRestError(fault, this.#exchange, this.#options.publicUrl);
  }

  #headers(): Record<string, string> {
    const headers = answerHeaders(this.#exchange);
    headers["x-content-type-options"] = "nosniff";
    this.#options.cors?.allow(this.#request.headers.origin, headers);
    if (keepsAlive(this.#request, this.#response)) headers["keep-alive"] = this.#options.keepAlive;
    return headers;
  }

  #ended(): void {
    this.#isEnded = true;
    this.#hold?.release();
    const answered = this.#response.writableEnded;
    if (!answered) this.#exchange.abandoned = true;
    this.#options.onEnd?.(this.#exchange, {
      method: this.method,
      path: this.path,
      status: answered ? this.#response.statusCode : 0,
      code: this.#code,
      durationMs: performance.now() - this.#startedMs,
    });
  }
}
