import { readFile } from "node:fs/promises";
import { fromBinary } from "@bufbuild/protobuf";
import { type FileDescriptorProto, FileDescriptorSetSchema } from "@bufbuild/protobuf/wkt";

/** Comments of the proto files by full name, from the descriptors that `npm run generate` writes. */
export async function readComments(): Promise<ReadonlyMap<string, string>> {
  const bytes = await readFile(new URL("gen/ingest.binpb", import.meta.url));
  return new Map(fromBinary(FileDescriptorSetSchema, bytes).file.flatMap((file) => commentsOf(file)));
}

function commentsOf(file: FileDescriptorProto): [name: string, comment: string][] {
  const byPath = new Map(
    file.sourceCodeInfo?.location.map(({ path, leadingComments }) => [path.join("."), leadingComments]),
  );
  const found: [string, string][] = [];
  const add = (path: string, name: string) => found.push([name, (byPath.get(path) ?? "").trim()]);
  // The numbers are field numbers of google.protobuf.FileDescriptorProto and its parts.
  const all = (
    place: number,
    parts: readonly { name: string }[],
    below: number,
    innerOf: (i: number) => { name: string }[],
  ) =>
    parts.forEach(({ name }, i) => {
      add(`${place}.${i}`, `${file.package}.${name}`);
      innerOf(i).forEach((inner, j) => add(`${place}.${i}.${below}.${j}`, `${file.package}.${name}.${inner.name}`));
    });
  const ofPackage = byPath.get("2");
  if (ofPackage !== undefined) found.push([file.package, ofPackage.trim()]);
  all(4, file.messageType, 2, (i) => file.messageType[i]?.field ?? []);
  all(4, file.messageType, 8, (i) => file.messageType[i]?.oneofDecl ?? []);
  all(5, file.enumType, 2, (i) => file.enumType[i]?.value ?? []);
  all(6, file.service, 2, (i) => file.service[i]?.method ?? []);
  return found;
}
