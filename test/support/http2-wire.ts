/**
 * HTTP/2 frames by hand (RFC 9113, RFC 7541), for input that no well-behaved client library can send. Nothing checks
 * the frames.
 */
export const preface = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "latin1");

export const frameType = {
  data: 0,
  headers: 1,
  priority: 2,
  rstStream: 3,
  settings: 4,
  ping: 6,
  goaway: 7,
  windowUpdate: 8,
  continuation: 9,
} as const;

export const flag = { endStream: 0x1, ack: 0x1, endHeaders: 0x4 } as const;

export const settingId = { headerTableSize: 1, initialWindowSize: 4 } as const;

/** A frame; `length` may lie about the payload. */
export function frame(
  type: number,
  flags: number,
  streamId: number,
  payload: Buffer = Buffer.alloc(0),
  length?: number,
): Buffer {
  const head = Buffer.alloc(9);
  head.writeUIntBE(length ?? payload.length, 0, 3);
  head.writeUInt8(type, 3);
  head.writeUInt8(flags, 4);
  head.writeUInt32BE(streamId, 5);
  return Buffer.concat([head, payload]);
}

export function settings(values: readonly (readonly [id: number, value: number])[] = []): Buffer {
  const payload = Buffer.alloc(6 * values.length);
  values.forEach(([id, value], i) => {
    payload.writeUInt16BE(id, 6 * i);
    payload.writeUInt32BE(value, 6 * i + 2);
  });
  return frame(frameType.settings, 0, 0, payload);
}

export const settingsAck = frame(frameType.settings, flag.ack, 0);
export const ping = frame(frameType.ping, 0, 0, Buffer.alloc(8, 7));

export function rstStream(streamId: number, code = 8): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(code);
  return frame(frameType.rstStream, 0, streamId, payload);
}

export function windowUpdate(streamId: number, increment: number): Buffer {
  const payload = Buffer.alloc(4);
  payload.writeUInt32BE(increment);
  return frame(frameType.windowUpdate, 0, streamId, payload);
}

export const data = (streamId: number, payload: Buffer, flags = 0) => frame(frameType.data, flags, streamId, payload);

/** An HPACK integer with `prefixBits` bits in its first byte, whose other bits are `first`. */
export function hpackInteger(value: number, prefixBits: number, first = 0): Buffer {
  const most = 2 ** prefixBits - 1;
  if (value < most) return Buffer.from([first | value]);
  const bytes = [first | most];
  let rest = value - most;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) | 0x80);
  bytes.push(rest);
  return Buffer.from(bytes);
}

const hpackString = (text: string | Buffer) => {
  const bytes = typeof text === "string" ? Buffer.from(text, "latin1") : text;
  return Buffer.concat([hpackInteger(bytes.length, 7), bytes]);
};

/** A field as a literal. With `indexed`, the peer keeps it in its dynamic table. */
export function hpackLiteral(name: string | Buffer, value: string | Buffer, indexed = false): Buffer {
  return Buffer.concat([Buffer.from([indexed ? 0x40 : 0x00]), hpackString(name), hpackString(value)]);
}

/** A field of the table; the first dynamic one is 62. */
export const hpackIndexed = (index: number) => hpackInteger(index, 7, 0x80);

export const hpack = (fields: Readonly<Record<string, string>>) =>
  Buffer.concat(Object.entries(fields).map(([name, value]) => hpackLiteral(name, value)));

/** The fields of a request, pseudo-fields first. */
export function requestFields(
  method: "GET" | "POST",
  path: string,
  fields: Readonly<Record<string, string>> = {},
): Buffer {
  return hpack({ ":method": method, ":scheme": "http", ":authority": "localhost", ":path": path, ...fields });
}

export const headers = (streamId: number, block: Buffer, flags: number = flag.endHeaders) =>
  frame(frameType.headers, flags, streamId, block);

/** A message in gRPC's envelope; `length` may lie. */
export function envelope(message: Buffer, flags = 0, length?: number): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(flags, 0);
  head.writeUInt32BE(length ?? message.length, 1);
  return Buffer.concat([head, message]);
}
