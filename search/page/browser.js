// The engine behind the page where there is no server: the browser hashes and scans, in a worker.

const worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
const waiting = new Map();
const urls = new Map(); // of thumbnails

worker.addEventListener("message", ({ data: { number, result, error, share, total } }) => {
  const { resolve, reject, report } = waiting.get(number);
  if (share !== undefined) return report?.(share, total);
  waiting.delete(number);
  if (error) reject(new Error(error));
  else resolve(result);
});
worker.addEventListener("error", (event) => {
  for (const { reject } of waiting.values()) reject(new Error(`This browser can't run the search (${event.message || "no module workers"}).`));
});

export function call(name, value, report) {
  return new Promise((resolve, reject) => {
    const number = (call.number = (call.number ?? 0) + 1);
    waiting.set(number, { resolve, reject, report });
    worker.postMessage({ number, call: name, value });
  });
}

export async function open(say) {
  const info = await call("open", null, (share, total) =>
    say(`Loading the network and the codes: ${Math.round(100 * share)} % of ${Math.ceil(total / 2 ** 20)} MiB`));
  if (info.duplicates) duplicates = () => call("duplicates");
  navigator.serviceWorker?.register("sw.js").catch(() => {}); // not on plain http; who forbids it can search all the same
  return info;
}

// What lies there now, whatever is kept here.
export const now = async () => (await fetch("data/info.json?now", { cache: "no-store" })).json();

// Ends when the newer state is here as a whole.
export async function renew() {
  const kept = await navigator.serviceWorker?.getRegistration();
  await kept?.update();
  const coming = kept?.installing;
  if (coming) await new Promise((done) => coming.addEventListener("statechange", () => ["activated", "redundant"].includes(coming.state) && done()));
}

export let duplicates = null; // of a large index, whose site does not have them
// Thumbnails too, for use without a network, when a visitor wants that.
export async function keep() {
  const { active } = await navigator.serviceWorker.ready;
  return new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("message", ({ data }) => resolve(data), { once: true });
    active.postMessage("keep");
  });
}

export const browse = (filters) => call("browse", filters);
export const search = (question) => call("search", question);

export async function thumbnail(id) {
  if (!urls.has(id)) urls.set(id, URL.createObjectURL(await call("thumbnail", id)));
  return urls.get(id);
}

export const original = () => null;
