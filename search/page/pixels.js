// A picture file as RGB bytes, the same that data/decode.py gives: upright, alpha over white, in sRGB: exactly where
// no colour profile is converted, else but for rounding.

const BAND = 1024; // rows that are read at a time: some browsers have small canvases
const MAX_RATIO = 100;
const text = (bytes, from, to) => String.fromCharCode(...bytes.subarray(from, to));

// Only these, whatever else a browser may read (a TIFF it may not).
function format(bytes) {
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return "JPEG";
  if (text(bytes, 0, 8) === "\x89PNG\r\n\x1a\n") return "PNG";
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP") return "WEBP";
  if (text(bytes, 0, 4) === "GIF8") return "GIF";
  if (text(bytes, 0, 2) === "BM") return "BMP";
  if (["II*\0", "MM\0*"].includes(text(bytes, 0, 4))) return "TIFF";
  return null;
}

// [kind, start, end] of the contents of each part of a PNG or a WebP file.
function* parts(bytes, webp) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = webp ? 12 : 8; at + 8 <= bytes.length; ) {
    const size = webp ? view.getUint32(at + 4, true) : view.getUint32(at);
    yield [text(bytes, webp ? at : at + 4, webp ? at + 4 : at + 8), at + 8, Math.min(at + 8 + size, bytes.length)];
    at += webp ? 8 + size + (size & 1) : 12 + size;
  }
}

// The orientation (1 to 8) that EXIF data tell; 1 where they don't.
function orientation(bytes) {
  const start = text(bytes, 0, 6) === "Exif\0\0" ? 6 : 0;
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, bytes.length - start);
  try {
    const little = view.getUint16(0) === 0x4949;
    const table = view.getUint32(4, little);
    for (let n = view.getUint16(table, little), at = table + 2; n > 0; n--, at += 12) {
      if (view.getUint16(at, little) === 0x112) {
        const turned = view.getUint16(at + 8, little);
        return turned >= 1 && turned <= 8 ? turned : 1;
      }
    }
  } catch {} // damaged EXIF data are no reason to lose the picture
  return 1;
}

function turn({ width, height, rgb }, how) {
  if (how === 1) return { width, height, rgb };
  const [w, h] = how > 4 ? [height, width] : [width, height];
  const turned = new Uint8Array(rgb.length);
  for (let y = 0, to = 0; y < h; y++) {
    for (let x = 0; x < w; x++, to += 3) {
      let [u, v] = how > 4 ? [y, x] : [x, y];
      if ([2, 3, 7, 8].includes(how)) u = width - 1 - u;
      if ([3, 4, 6, 7].includes(how)) v = height - 1 - v;
      const from = 3 * (v * width + u);
      turned[to] = rgb[from];
      turned[to + 1] = rgb[from + 1];
      turned[to + 2] = rgb[from + 2];
    }
  }
  return { width: w, height: h, rgb: turned };
}

// Grayscale PNG of 16 bits: browsers cut the low byte, data/decode.py rounds.
async function gray16(bytes, width, height) {
  const data = [...parts(bytes, false)].filter(([kind]) => kind === "IDAT").map(([, from, to]) => bytes.subarray(from, to));
  const stream = new Blob(data).stream().pipeThrough(new DecompressionStream("deflate"));
  const raw = new Uint8Array(await new Response(stream).arrayBuffer());
  const stride = 2 * width;
  if (raw.length < height * (stride + 1)) throw new Error("truncated");
  const rgb = new Uint8Array(3 * width * height);
  let above = new Uint8Array(stride);
  for (let y = 0, to = 0; y < height; y++) {
    const filter = raw[y * (stride + 1)];
    const row = raw.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    for (let i = 0; i < stride; i++) {
      const a = i > 1 ? row[i - 2] : 0;
      const b = above[i];
      const c = i > 1 ? above[i - 2] : 0;
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      const paeth = pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
      row[i] += [0, a, b, (a + b) >> 1, paeth][filter];
    }
    for (let i = 0; i < stride; i += 2, to += 3) rgb.fill(Math.round((256 * row[i] + row[i + 1]) / 257), to, to + 3);
    above = row;
  }
  return { width, height, rgb };
}

function check(width, height, max) {
  if (width * height > max) throw new Error(`more than ${Math.round(max / 1e6)} megapixels; make it smaller`);
  if (Math.max(width, height) > MAX_RATIO * Math.min(width, height)) {
    throw new Error(`${width} x ${height} is a strip; cut a part of it`);
  }
}

// Whether this browser gives the pixels of a picture as they are, tried on known ones: privacy modes add noise.
let honest;
export const faithful = () => (honest ??= (async () => {
  const known = new ImageData(64, 64);
  known.data.forEach((_, i, data) => (data[i] = i % 4 === 3 ? 255 : Math.imul(i, 2654435761) >>> 24));
  const context = new OffscreenCanvas(64, 64).getContext("2d", { willReadFrequently: true });
  context.drawImage(await createImageBitmap(known), 0, 0);
  return context.getImageData(0, 0, 64, 64).data.every((value, i) => value === known.data[i]);
})());

async function decoded(bytes, max) {
  const bitmap = await createImageBitmap(new Blob([bytes]), { premultiplyAlpha: "none" });
  try {
    const { width, height } = bitmap;
    check(width, height, max);
    const canvas = new OffscreenCanvas(width, Math.min(height, BAND));
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const rgb = new Uint8Array(3 * width * height);
    context.imageSmoothingEnabled = false;
    context.fillStyle = "#fff";
    for (let y = 0, to = 0; y < height; y += BAND) {
      const rows = Math.min(BAND, height - y);
      context.fillRect(0, 0, width, rows);
      context.drawImage(bitmap, 0, -y);
      const rgba = context.getImageData(0, 0, width, rows).data;
      if (rgba[3] !== 255) throw new Error("larger than this browser can draw"); // it draws nothing, and says nothing
      for (let from = 0; from < rgba.length; from += 4, to += 3) {
        rgb[to] = rgba[from];
        rgb[to + 1] = rgba[from + 1];
        rgb[to + 2] = rgba[from + 2];
      }
    }
    return { width, height, rgb };
  } finally {
    bitmap.close();
  }
}

// What a second look sees of a picture, as look_at of search/copies.py: the low frequencies of 32 x 32 gray pixels.
export function look({ width, height, rgb }) {
  const small = new Float64Array(32 * 32);
  for (let y = 0, at = 0; y < height; y++) {
    for (let x = 0; x < width; x++, at += 3) {
      const gray = 0.299 * rgb[at] + 0.587 * rgb[at + 1] + 0.114 * rgb[at + 2];
      for (let v = Math.floor((y * 32) / height); v * height < (y + 1) * 32; v++) {
        const part = Math.min((v + 1) * height, (y + 1) * 32) - Math.max(v * height, y * 32);
        for (let u = Math.floor((x * 32) / width); u * width < (x + 1) * 32; u++) {
          small[32 * v + u] += gray * part * (Math.min((u + 1) * width, (x + 1) * 32) - Math.max(u * width, x * 32));
        }
      }
    }
  }
  const wave = (frequency, at) => Math.cos((Math.PI * frequency * (2 * at + 1)) / 64);
  const low = Array.from({ length: 64 }, (_, n) => small.reduce((sum, value, at) => sum + value * wave(n >> 3, at >> 5) * wave(n & 7, at & 31), 0));
  const median = low.slice(1).sort((a, b) => a - b)[31];
  return Uint8Array.from({ length: 8 }, (_, byte) => low.slice(8 * byte, 8 * byte + 8).reduce((all, value, i) => 2 * all + (byte + i > 0 && value > median), 0));
}

// {width, height, rgb} of a file; max: pixels that are allowed.
export async function pixels(file, max) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  const kind = format(bytes);
  const brand = String.fromCharCode(...bytes.slice(4, 12));
  if (/^ftyp(hei|hev|mif)/.test(brand)) {
    throw new Error("HEIC, which can't be read here: on an iPhone choose Settings, Camera, Formats, Most Compatible; or convert it to JPEG");
  }
  if (brand === "ftypavif") throw new Error("AVIF, which can't be read here; convert it to JPEG");
  if (!kind) throw new Error("not a readable image (none of JPEG, PNG, WEBP, BMP, GIF, TIFF)");
  if (kind === "WEBP") {
    for (const [name, from] of parts(bytes, true)) {
      if (name === "EXIF") bytes[from - 8] = 0x78; // "xXIF": some browsers turn by it, most don't, so none shall
    }
  }
  try {
    const coloured = () => [...parts(bytes, false)].some(([name]) => ["iCCP", "gAMA", "tRNS"].includes(name));
    if (kind === "PNG" && bytes[24] === 16 && bytes[25] === 0 && !coloured()) {
      if (bytes[28]) throw new Error("an interlaced PNG of 16-bit gray, which can't be read here; save it without interlacing");
      const view = new DataView(bytes.buffer);
      const [width, height] = [view.getUint32(16), view.getUint32(20)];
      check(width, height, max);
      let how = 1;
      for (const [name, from, to] of parts(bytes, false)) if (name === "eXIf") how = orientation(bytes.slice(from, to));
      return turn(await gray16(bytes, width, height), how);
    }
    return await decoded(bytes, max);
  } catch (error) {
    if (["InvalidStateError", "EncodingError", "TypeError"].includes(error.name)) {
      throw new Error(`not a readable image (${kind}: damaged, or of a kind that this browser can't read)`);
    }
    throw error;
  }
}
