import {
  type DescMessage,
  fromBinary,
  fromJson,
  type Message,
  type JsonReadOptions,
  type MessageShape,
  toBinary,
  toJson,
} from "@bufbuild/protobuf";
import { Fault } from "../../errors.ts";
import { invalidMember } from "../../ingest/validate.ts";
import { parseJson } from "../http/body.ts";
import { checkedJson, type Format, ignoredOfJson, ignoredOfMessage } from "./json-check.ts";
import { kindlessValueIn } from "./kindless.ts";
import { spelledFor } from "./spelling.ts";

/** For JSON: the types that a google.protobuf.Any may hold. */
export type JsonOptions = Pick<JsonReadOptions, "registry">;

/** Reads a request's message and writes its answers, in the caller's format. */
export class MessageCodec {
  readonly #bytes: Uint8Array;
  readonly #format: Format;
  readonly #jsonOptions: JsonOptions | undefined;
  #request: { readonly desc: DescMessage; readonly message: Message } | undefined;

  constructor(bytes: Uint8Array, format: Format, jsonOptions: JsonOptions | undefined) {
    this.#bytes = bytes;
    this.#format = format;
    this.#jsonOptions = jsonOptions;
  }

  /** @throws Fault invalid_body. The parsers' own errors name no path and no remedy. */
  read<Desc extends DescMessage>(desc: Desc, checkJson?: (json: unknown) => void): MessageShape<Desc> {
    const message = this.#format === "proto" ? this.#readBinary(desc) : this.#readJson(desc, checkJson);
    this.#request = { desc, message };
    return message;
  }

  write<Desc extends DescMessage>(desc: Desc, message: MessageShape<Desc>): Uint8Array {
    return this.#format === "proto"
      ? toBinary(desc, message)
      : Buffer.from(JSON.stringify(toJson(desc, message, this.#jsonOptions)));
  }

  /** For a dry run: paths of members that the request has and its message does not. */
  ignored(): string[] {
    if (this.#request === undefined) return [];
    const { desc, message } = this.#request;
    return this.#format === "proto" ? ignoredOfMessage(desc, message) : ignoredOfJson(desc, parseJson(this.#bytes));
  }

  /** The error, with the names of the schema in its issues, spelled as this caller writes them. */
  spelled(error: unknown): unknown {
    if (!(error instanceof Fault) || error.issues.length === 0 || this.#request === undefined) return error;
    return spelledFor(error, this.#request.desc, this.#request.message, this.#format);
  }

  #readBinary<Desc extends DescMessage>(desc: Desc): MessageShape<Desc> {
    let kindless: string | undefined;
    let message: MessageShape<Desc>;
    try {
      message = fromBinary(desc, this.#bytes);
      // This throws where protobuf-es does not: for a field that is longer than the map entry it is in.
      kindless = kindlessValueIn(desc, message, this.#bytes);
    } catch (error) {
      // This error is TextDecoder's. All others concern the wire format.
      const isText = (error as NodeJS.ErrnoException).code === "ERR_ENCODING_INVALID_ENCODED_DATA";
      throw unreadable(isText ? "has text that is not valid UTF-8" : `is not a message of ${desc.typeName}`, error);
    }
    if (kindless !== undefined) throw invalidMember(kindless, "has no kind; null is null_value");
    return message;
  }

  #readJson<Desc extends DescMessage>(desc: Desc, checkJson?: (json: unknown) => void): MessageShape<Desc> {
    // In JSON, an empty message is {}; an empty body is only valid in the binary format.
    const sent = parseJson(this.#bytes);
    checkJson?.(sent);
    const json = checkedJson(desc, sent);
    try {
      return fromJson(desc, json, { ignoreUnknownFields: true, ...this.#jsonOptions });
    } catch (error) {
      throw unreadable(`is not JSON of ${desc.typeName}`, error);
    }
  }
}

const unreadable = (message: string, cause: unknown): Fault => invalidMember("body", message, cause);
