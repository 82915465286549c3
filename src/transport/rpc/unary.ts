import type { IncomingHttpHeaders } from "node:http";
import type { DescMessage, DescMethodUnary, MessageInitShape, MessageShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type ConnectRouter, createContextKey, type HandlerContext } from "@connectrpc/connect";
import type { Exchange } from "../../exchange.ts";
import { exchangeKey, headersKey } from "./context.ts";
import { rpcErrorFrom } from "./errors.ts";

/** What a unary RPC knows of its request, whichever path serves it. */
export interface UnaryContext {
  readonly exchange: Exchange;
  /** Request headers, names in lower case. */
  readonly headers: IncomingHttpHeaders;
  /** Sent with the answer, success or error, beside the headers that every answer carries. */
  readonly responseHeader: Headers;
  readonly responseTrailer: Headers;
}

/**
 * A unary RPC with its implementation, as every path needs it: Connect's router (all protocols) and the path that serves
 * gRPC without it. Whatever `admit` and `call` throw leaves as the API's error.
 */
export interface UnaryRpc {
  readonly method: DescMethodUnary;
  /** Runs before the message is read; a caller it refuses never has a message parsed. Its result goes to `call`. */
  admit(context: UnaryContext): unknown;
  call(request: any, admitted: any, context: UnaryContext): Init | Promise<Init>;
}

/** A message of the method's output, or what makes one. */
export type Init = Record<string, unknown>;

/** Types a row of the table: `call` gets the method's input and what `admit` answered, and answers its output. */
export function unary<I extends DescMessage, O extends DescMessage, Admitted>(
  method: DescMethodUnary<I, O>,
  admit: (context: UnaryContext) => Admitted | Promise<Admitted>,
  call: (
    request: MessageShape<I>,
    admitted: Admitted,
    context: UnaryContext,
  ) => MessageInitShape<O> | Promise<MessageInitShape<O>>,
): UnaryRpc {
  return { method, admit, call: call as UnaryRpc["call"] };
}

const admittedKey = createContextKey<unknown>(undefined, { description: "what admit answered" });

/** Puts the RPCs on Connect's router, which serves them over Connect, gRPC and gRPC-Web. */
export function registerUnary(router: ConnectRouter, rpcs: readonly UnaryRpc[], publicUrl: string): void {
  for (const { method, admit, call } of rpcs) {
    router.rpc(
      method,
      (request, context) =>
        answer(context, publicUrl, (own) => call(request, context.values.get(admittedKey), own) as Promise<Init>),
      {
        requestGate: (context) =>
          answer(context, publicUrl, async (own) => {
            context.values.set(admittedKey, await admit(own));
          }),
      },
    );
  }
}

/** Runs `work` in the context's time; whatever it throws leaves as the API's error. */
async function answer<T>(
  context: HandlerContext,
  publicUrl: string,
  work: (own: UnaryContext) => T | Promise<T>,
): Promise<T> {
  const exchange = context.values.get(exchangeKey) as Exchange;
  const headers = context.values.get(headersKey) as IncomingHttpHeaders;
  const { responseHeader, responseTrailer } = context;
  try {
    const result = work({ exchange, headers, responseHeader, responseTrailer });
    if (!(result instanceof Promise) || context.timeoutMs() === undefined) return await result;
    return await Promise.race([result, rejectedOnAbort(context.signal)]);
  } catch (error) {
    throw rpcErrorFrom(error, exchange, publicUrl);
  }
}

function rejectedOnAbort(signal: AbortSignal): Promise<never> {
  return new Promise((_resolve, reject) => {
    const stop = () =>
      reject(ConnectError.from(signal.reason ?? new ConnectError("the deadline has passed", Code.DeadlineExceeded)));
    if (signal.aborted) stop();
    else signal.addEventListener("abort", stop, { once: true });
  });
}
