// The engine of a site without a server, in a thread of its own: it decodes, hashes and scans.

import { faithful, look, pixels } from "./pixels.js";

const site = new URL("../", import.meta.url);
let info, data, ort, session, words, code, folderOf;
const NOISE = "This browser changes the pixels of pictures that a page reads, as some privacy settings do: what is found may be wrong. "
  + "Let this site read them (canvas data), or use another browser.";
const groups = new Map(); // promises of {names, ids, sizes} by number
const rows = new Map(); // of pictures that were shown, by id: a row is a place, and another state has another picture there
let looks; // promise: of all pictures
let ids; // promise: of all pictures
let taken; // promise: when all pictures were
const thumbs = new Map(); // whole files of thumbnails
let parts; // promise: whether the host gives parts of files

async function get(address, options) {
  let response;
  try {
    response = await fetch(address, options);
  } catch {
    throw new Error(`${new URL(address).pathname} can't be had: no network, and not kept for use without one`);
  }
  if (!response.ok) throw new Error(`${new URL(address).pathname} can't be had (status ${response.status})`);
  return response;
}

// Large files, with word of how far they are; sizes are known beforehand, since hosts compress what they send.
async function load(files, report) {
  const total = files.reduce((sum, { size }) => sum + size, 0);
  let done = 0;
  return Promise.all(files.map(async ({ address, size }) => {
    const whole = new Uint8Array(size);
    let at = 0;
    for (let reader = (await get(address)).body.getReader(); ; ) {
      const part = await reader.read();
      if (part.done) break;
      if (at + part.value.length > size) throw new Error(`${address} is another one than this site was written with; load the page again`);
      whole.set(part.value, at);
      at += part.value.length;
      done += part.value.length;
      report(done / total, total);
    }
    if (at !== size) throw new Error(`${address} ended early; load the page again`);
    return whole;
  }));
}

const hex = (buffer) => [...new Uint8Array(buffer)].map((byte) => byte.toString(16).padStart(2, "0")).join("");

async function open(report) {
  info = await (await get(new URL("data/info.json", site), { cache: "no-cache" })).json();
  data = new URL(`data/${info.version}/`, site);
  const runtime = new URL(info.runtime.address, site);
  const at = (name, base = data) => ({ address: new URL(name, base).href, size: info.sizes[name] });
  const [model, codes, folders, wasm] = await load(
    [at("model.onnx"), at("codes.bin"), at("folders.bin"), at(info.runtime.wasm, runtime)], report);
  const hash = crypto.subtle && hex(await crypto.subtle.digest("SHA-256", model));
  if (hash && hash !== info.student.model_sha256) throw new Error("model.onnx is damaged; load the page again");
  ort = await import(new URL(info.runtime.module, runtime).href);
  ort.env.wasm.numThreads = 1; // more would need headers that most hosts don't send
  ort.env.wasm.wasmBinary = wasm.buffer;
  session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"], enableMemPattern: false, enableCpuMemArena: false });
  code = codes;
  words = padded(codes, info.pictures, info.width);
  folderOf = new Uint32Array(folders.buffer);
  return info;
}

// Codes [n, w] in whole words of 32 bits, zeros behind.
function padded(codes, n, width) {
  const wide = 4 * Math.ceil(width / 4);
  if (wide === width) return new Uint32Array(codes.buffer);
  const bytes = new Uint8Array(n * wide);
  for (let row = 0; row < n; row++) bytes.set(codes.subarray(row * width, (row + 1) * width), row * wide);
  return new Uint32Array(bytes.buffer);
}

function bits(word) {
  word -= (word >>> 1) & 0x55555555;
  word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
  return Math.imul((word + (word >>> 4)) & 0x0f0f0f0f, 0x01010101) >>> 24;
}

// Rows and distances of the k nearest, ascending, ties in the order of the rows: all are counted, none is guessed.
export function nearest(query, database, width, k, radius, allowed) {
  const n = database.length / width;
  const distances = new Uint16Array(n);
  const counts = new Uint32Array(32 * width + 1);
  let searched = 0;
  for (let row = 0, at = 0; row < n; row++, at += width) {
    if (allowed && !allowed(row)) {
      distances[row] = 65535;
      continue;
    }
    let distance = 0;
    for (let i = 0; i < width; i++) distance += bits(query[i] ^ database[at + i]);
    distances[row] = distance;
    counts[distance]++;
    searched++;
  }
  const starts = new Uint32Array(counts.length + 1);
  let last = -1; // the greatest distance that is shown
  for (let d = 0; d < counts.length && d <= radius && starts[d] < k; d++) {
    starts[d + 1] = starts[d] + counts[d];
    last = d;
  }
  const found = Math.min(k, last < 0 ? 0 : starts[last + 1]);
  const rows = new Uint32Array(found);
  for (let row = 0, left = found; row < n && left; row++) {
    if (distances[row] > last) continue;
    const place = starts[distances[row]]++;
    if (place < found) {
      rows[place] = row;
      left--;
    }
  }
  return { searched, rows, distances };
}

async function read(file) {
  try {
    return await pixels(file, info.max_pixels);
  } catch (error) {
    throw new Error(`${file.name || "picture"}: ${error.message}`);
  }
}

const hashed = async (file) => codeOf(await read(file));

async function codeOf(picture) {
  const image = new ort.Tensor("uint8", picture.rgb, [picture.height, picture.width, 3]);
  const { code } = await session.run({ image }, ["code"]);
  const bytes = code.data.slice();
  code.dispose();
  return bytes;
}

function group(row) {
  const number = Math.floor(row / info.group);
  if (!groups.has(number)) {
    const promise = get(new URL(`names-${number}.json`, data)).then((response) => response.json());
    promise.catch(() => groups.delete(number)); // the next one may be luckier
    groups.set(number, promise);
  }
  return groups.get(number);
}

async function path(row) {
  const name = (await group(row)).names[row % info.group];
  const folder = info.folders[folderOf[row]];
  return folder ? `${folder}/${name}` : name;
}

async function idOf(row) {
  const id = (await group(row)).ids[row % info.group];
  rows.set(id, row);
  return id;
}

// The place of a picture, by its content: the first of copies.
async function rowOf(id) {
  if (!rows.has(id) && /^[0-9a-f]{16}$/.test(id)) {
    ids ??= get(new URL("ids.bin", data)).then((response) => response.arrayBuffer());
    const all = new DataView(await ids.catch((error) => { ids = undefined; throw error; }));
    const wanted = BigInt(`0x${id}`);
    for (let row = 0; row < info.pictures; row++) {
      if (all.getBigUint64(8 * row) === wanted) return rows.set(id, row) && row;
    }
  }
  if (!rows.has(id)) throw new Error(`this site has no picture ${id}`);
  return rows.get(id);
}

async function times() {
  taken ??= get(new URL("taken.bin", data)).then((response) => response.arrayBuffer());
  return new Float64Array(await taken.catch((error) => { taken = undefined; throw error; }));
}

const facts = async (row, taken) => ({ path: await path(row), id: await idOf(row), taken: taken[row] });

// Which of these rows are likely the same picture.
async function likely(seen, row, found) {
  looks ??= get(new URL("looks.bin", data)).then((response) => response.arrayBuffer());
  const all = new Uint8Array(await looks.catch((error) => { looks = undefined; throw error; }));
  const of = (row) => all.subarray(8 * row, 8 * row + 8);
  const mine = seen ?? of(row);
  const apart = (other) => of(other).reduce((sum, byte, i) => sum + bits(byte ^ mine[i]), 0);
  return [...found].slice(0, info.looked).filter((other) => of(other).some(Boolean) && apart(other) <= info.alike);
}

// Whether a row is of a folder, or below it, and of these days.
function filter({ folder, after, before }, taken) {
  if (!folder && !after && !before) return null;
  const inside = info.folders.map((name) => !folder || name === folder || name.startsWith(`${folder}/`));
  const [from, to] = [after ? Date.parse(after) / 1000 : -Infinity, before ? Date.parse(before) / 1000 : Infinity];
  return (row) => inside[folderOf[row]] && taken[row] >= from && taken[row] < to;
}

let listed = []; // rows that were listed last, newest first
async function browse({ start, n, ...filters }) {
  const taken = await times();
  if (!start) {
    listed = [...taken.keys()].filter(filter(filters, taken) ?? (() => true));
    listed.sort((a, b) => taken[b] - taken[a] || b - a);
  }
  return { pictures: listed.length, results: await Promise.all(listed.slice(start, start + n).map((row) => facts(row, taken))) };
}

async function search({ file, id, k, radius, ...filters }) {
  if (!info.pictures) throw new Error("the index is empty");
  const asked = file ? null : await rowOf(id);
  const taken = await times();
  const begun = performance.now();
  const query = new Uint8Array(4 * Math.ceil(info.width / 4));
  const picture = file && (await read(file));
  query.set(file ? await codeOf(picture) : code.subarray(asked * info.width, (asked + 1) * info.width));
  const ready = performance.now();
  const { searched, rows: found, distances } = nearest(new Uint32Array(query.buffer), words, query.length / 4, k,
    radius ?? Infinity, filter(filters, taken));
  const done = performance.now();
  const same = await likely(file && look(picture), asked, found);
  return {
    ...(file && !(await faithful()) && { note: NOISE }),
    query: file ? file.name || "picture" : await path(asked),
    hash_ms: file ? ready - begun : 0,
    search_ms: done - ready,
    searched,
    likely_same: await Promise.all(same.map(idOf)),
    results: await Promise.all(Array.from(found, async (row, i) => (
      { rank: i + 1, distance: distances[row], ...await facts(row, taken) }))),
  };
}

// Whole files of thumbnails, a few of them: where the host gives no parts, or they are kept for use without a network.
function whole(number, blob) {
  blob.catch(() => thumbs.delete(number));
  thumbs.set(number, blob);
  if (thumbs.size > 64) thumbs.delete(thumbs.keys().next().value);
}

const part = (address, from, to) => get(address, { headers: { Range: `bytes=${from}-${to}` } });

// A thumbnail as a Blob.
async function thumbnail(id) {
  const row = await rowOf(id);
  const number = Math.floor(row / info.shard);
  const { sizes } = await group(row);
  const [first, at] = [(number * info.shard) % info.group, row % info.group];
  const start = sizes.slice(first, at).reduce((sum, size) => sum + size, 0);
  const address = new URL(`thumbs-${number}.bin`, data);
  parts ??= part(address, 0, 0).then((response) => response.status === 206 && response.arrayBuffer());
  const inParts = await parts.catch((error) => { parts = undefined; throw error; }); // asked again the next time
  if (!thumbs.has(number)) {
    const response = inParts && (await part(address, start, start + sizes[at] - 1));
    if (response?.status === 206) return new Blob([await response.arrayBuffer()], { type: "image/jpeg" });
    whole(number, response ? response.blob() : get(address).then((all) => all.blob()));
  }
  return (await thumbs.get(number)).slice(start, start + sizes[at], "image/jpeg");
}

const duplicates = async () => (await get(new URL("duplicates.json", data))).json();

const calls = { open, browse, search, thumbnail, duplicates, hashed };

addEventListener("message", async ({ data: { number, call, value } }) => {
  const report = (share, total) => postMessage({ number, share, total });
  try {
    postMessage({ number, result: await calls[call](call === "open" ? report : value) });
  } catch (error) {
    postMessage({ number, error: error.message || String(error) });
  }
});
