import { readFileSync } from "node:fs";
import { type DescFile, type DescService, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { FileDescriptorProtoSchema, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";
import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError, type ConnectRouter } from "@connectrpc/connect";
import { file_google_rpc_error_details } from "../../gen/google/rpc/error_details_pb.js";
import {
  type ServerReflectionRequest,
  type ServerReflectionResponseSchema,
  ServerReflection as V1,
} from "../../gen/grpc/reflection/v1/reflection_pb.js";
import type { Incoming } from "../http/route.ts";
import { requestKey, type StreamPlaces } from "./stream-places.ts";
import { ServerReflection as V1Alpha } from "../../gen/grpc/reflection/v1alpha/reflection_pb.js";

/** Limits on reflection streams. They need no key. */
export const reflectionPlaces = { max: 50, perConnectionMax: 2, perAddressMax: 20 } as const;

/** The most answers of one stream. */
export const reflectionAnswersMax = 200;

/** Descriptor bytes per second, over all callers; past it they wait. A question of 25 bytes gets 50,000 in answer. */
const bytesPerSecond = 2_000_000;

type Reply = Omit<MessageInitShape<typeof ServerReflectionResponseSchema>, "$typeName">;

/** gRPC server reflection, v1 and v1alpha, over the generated descriptors of `services` and of itself. */
export function reflectionService(
  services: readonly DescService[],
  places: StreamPlaces,
): (router: ConnectRouter) => void {
  const all = [...services, V1, V1Alpha];
  const files = new Map<string, DescFile>();
  const symbols = new Map<string, DescFile>();
  for (const service of all) addFile(service.file, files);
  // Clients need it to read the details of errors.
  addFile(file_google_rpc_error_details, files);
  for (const file of files.values()) {
    for (const symbol of symbolsOf(file)) symbols.set(symbol, file);
  }

  function answer(request: Pick<ServerReflectionRequest, "messageRequest">): Reply["messageResponse"] {
    const { case: kind, value } = request.messageRequest;
    switch (kind) {
      case "listServices":
        return { case: "listServicesResponse", value: { service: all.map(({ typeName: name }) => ({ name })) } };
      case "fileByFilename":
        return fileReply(files.get(value), `file not found: ${value}`);
      case "fileContainingSymbol":
        return fileReply(symbols.get(value), `symbol not found: ${value}`);
      case "allExtensionNumbersOfType":
        return symbols.has(value)
          ? {
              case: "allExtensionNumbersResponse",
              value: { baseTypeName: value, extensionNumber: extensionsOf(value) },
            }
          : notFound(`type not found: ${value}`);
      case "fileContainingExtension": {
        const file = [...files.values()].find(({ extensions }) =>
          extensions.some(
            ({ extendee, number }) => extendee.typeName === value.containingType && number === value.extensionNumber,
          ),
        );
        return fileReply(file, `extension not found: ${value.containingType} ${value.extensionNumber}`);
      }
      default:
        return { case: "errorResponse", value: { errorCode: Code.InvalidArgument, errorMessage: "an empty request" } };
    }
  }

  const extensionsOf = (type: string): number[] =>
    [...files.values()].flatMap(({ extensions }) =>
      extensions.filter(({ extendee }) => extendee.typeName === type).map(({ number }) => number),
    );

  /** The file with all its imports, so that a client asks once. */
  function fileReply(file: DescFile | undefined, missing: string): Reply["messageResponse"] {
    if (file === undefined) return notFound(missing);
    let fileDescriptorProto = encoded.get(file);
    if (fileDescriptorProto === undefined) {
      const closure = new Map<string, DescFile>();
      addFile(file, closure);
      fileDescriptorProto = [...closure.values()].map(({ proto }) =>
        toBinary(FileDescriptorProtoSchema, commented.get(proto.name) ?? proto),
      );
      encoded.set(file, fileDescriptorProto);
    }
    return { case: "fileDescriptorResponse", value: { fileDescriptorProto } };
  }
  const encoded = new Map<DescFile, Uint8Array[]>();
  // Generated code lacks the comments of the schema; this file has them.
  const set = fromBinary(FileDescriptorSetSchema, readFileSync(new URL("../../gen/ingest.binpb", import.meta.url)));
  const commented = new Map(set.file.map((file) => [file.name, file]));

  /** Until when the sent bytes use up the budget, in milliseconds of `performance.now()`. */
  let paidAtMs = 0;
  async function pay(reply: Reply["messageResponse"]): Promise<void> {
    if (reply?.case !== "fileDescriptorResponse") return;
    const bytes = (reply.value.fileDescriptorProto ?? []).reduce((sum, file) => sum + file.byteLength, 0);
    const nowMs = performance.now();
    paidAtMs = Math.max(paidAtMs, nowMs - 1_000) + (bytes / bytesPerSecond) * 1_000;
    if (paidAtMs > nowMs) await delay(paidAtMs - nowMs);
  }

  return (router) => {
    for (const service of [V1, V1Alpha]) {
      router.service(service as typeof V1, {
        async *serverReflectionInfo(requests, context) {
          const leave = places.take(context.values.get(requestKey) as Incoming);
          if (leave === undefined) throw new ConnectError("too many streams of reflection", Code.ResourceExhausted);
          try {
            let answers = 0;
            for await (const request of requests) {
              if (++answers > reflectionAnswersMax) {
                throw new ConnectError(`a stream gets ${reflectionAnswersMax} answers`, Code.ResourceExhausted);
              }
              const messageResponse = answer(request) ?? { case: undefined };
              await pay(messageResponse);
              yield { validHost: request.host, originalRequest: request, messageResponse };
            }
          } finally {
            leave();
          }
        },
      });
    }
  };
}

const notFound = (errorMessage: string): Reply["messageResponse"] => ({
  case: "errorResponse",
  value: { errorCode: Code.NotFound, errorMessage },
});

/** Adds a file and its imports, by the names that imports use. */
function addFile(file: DescFile, files: Map<string, DescFile>): void {
  if (files.has(file.proto.name)) return;
  files.set(file.proto.name, file);
  for (const dependency of file.dependencies) addFile(dependency, files);
}

function symbolsOf(file: DescFile): string[] {
  const symbols: string[] = [];
  const addMessages = (messages: DescFile["messages"]): void => {
    for (const message of messages) {
      symbols.push(message.typeName, ...message.fields.map(({ name }) => `${message.typeName}.${name}`));
      symbols.push(...message.nestedEnums.map(({ typeName }) => typeName));
      addMessages(message.nestedMessages);
    }
  };
  addMessages(file.messages);
  symbols.push(...file.enums.map(({ typeName }) => typeName), ...file.extensions.map(({ typeName }) => typeName));
  for (const { typeName, methods } of file.services) {
    symbols.push(typeName, ...methods.map(({ name }) => `${typeName}.${name}`));
  }
  return symbols;
}
