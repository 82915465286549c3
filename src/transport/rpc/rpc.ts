import {
  create,
  type DescMessage,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import type { Incoming } from "../http/route.ts";
import type { MessageCodec } from "./message-codec.ts";

/** The request and the answer of an RPC, over every protocol. */
export interface RpcContext {
  readonly request: Incoming;
  /** Further headers of the answer, also of an error. */
  readonly responseHeader: Headers;
  readonly responseTrailer: Headers;
  /** Aborted when the caller goes away or its deadline passes. */
  readonly signal: AbortSignal;
}

/** An RPC whose request is one message. Errors of `admit` and of the work become the API's errors. */
export interface Rpc {
  readonly method: DescMethodUnary | DescMethodServerStreaming;
  /** Runs before the message is read, so that we parse no message of a refused caller. */
  admit(context: RpcContext): Promise<Work>;
}

/** Reads the request's message and writes the answer: one message or several. */
export type Work = (codec: MessageCodec) => Promise<Uint8Array> | AsyncGenerator<Uint8Array, void>;

type Admit<Admitted> = (context: RpcContext) => Admitted | Promise<Admitted>;

/** @param checkJson runs before the JSON of a request is checked against its schema. */
export function unary<I extends DescMessage, O extends DescMessage, Admitted>(
  method: DescMethodUnary<I, O>,
  admit: Admit<Admitted>,
  call: (
    request: MessageShape<I>,
    admitted: Admitted,
    context: RpcContext,
  ) => MessageInitShape<O> | Promise<MessageInitShape<O>>,
  checkJson?: (json: unknown) => void,
): Rpc {
  return {
    method,
    async admit(context) {
      const admitted = await admit(context);
      return async (codec) =>
        codec.write(
          method.output,
          create(method.output, await call(codec.read(method.input, checkJson), admitted, context)),
        );
    },
  };
}

export function serverStream<I extends DescMessage, O extends DescMessage, Admitted>(
  method: DescMethodServerStreaming<I, O>,
  admit: Admit<Admitted>,
  call: (request: MessageShape<I>, admitted: Admitted, context: RpcContext) => AsyncIterable<MessageInitShape<O>>,
): Rpc {
  return {
    method,
    async admit(context) {
      const admitted = await admit(context);
      return async function* (codec) {
        const messages = call(codec.read(method.input), admitted, context);
        for await (const message of messages) yield codec.write(method.output, create(method.output, message));
      };
    },
  };
}
