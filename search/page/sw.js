// Keeps the site for use without a network. What is written at the top names the files of one state of it.

const { version: VERSION, first: FIRST, later: LATER } = /* FILES */ {};
const ours = `pictures ${registration.scope} `;
const name = ours + VERSION;

addEventListener("install", (event) => {
  const fresh = FIRST.map((file) => new Request(file, { cache: "no-cache" }));
  event.waitUntil(caches.open(name).then((cache) => cache.addAll(fresh)).then(() => skipWaiting())); // pages say that it is new
});

addEventListener("activate", (event) => {
  const old = (keys) => keys.filter((key) => key.startsWith(ours) && key !== name);
  event.waitUntil(caches.keys().then((keys) => Promise.all(old(keys).map((key) => caches.delete(key)))).then(() => clients.claim()));
});

addEventListener("fetch", (event) => {
  if (event.request.method !== "GET") return;
  const page = event.request.mode === "navigate";
  event.respondWith(caches.open(name).then(async (cache) => {
    const kept = await cache.match(event.request, { ignoreSearch: page, ignoreVary: true });
    if (kept) return kept;
    const response = await fetch(event.request);
    if (response.status === 200 && LATER.some((file) => event.request.url === registration.scope + file)) {
      event.waitUntil(cache.put(event.request, response.clone()).catch(() => {})); // what was seen is there without a network
    }
    return response;
  }));
});

// What a visitor wants kept too, one file at a time.
addEventListener("message", (event) => event.waitUntil((async () => {
  const cache = await caches.open(name);
  let said = "yes";
  for (const file of LATER) {
    try {
      if (!(await cache.match(file))) await cache.add(file);
    } catch {
      said = "partly"; // the disk is full, or the network gone
      break;
    }
  }
  event.source?.postMessage(said);
})()));
