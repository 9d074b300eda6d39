// The page: a question (a picture of yours, or one of the index), its answer as a grid, and the way back.
// What answers is an engine: server.js, or browser.js on a site without a server. Both have open, now, search, renew,
// thumbnail, original; duplicates and keep or null.

const engine = await import(`./${document.documentElement.dataset.engine}.js`);
const BATCH = 60; // tiles that are added at a time

const $ = (id) => document.getElementById(id);
const body = document.body;
const number = new Intl.NumberFormat("en-GB");
const files = new Map(); // pictures of this visit, by the number that the history keeps
let info = null;
let asking = new AbortController();
let hits = []; // of the last answer, those that are not shown yet among them
let shown = 0;
let question = null; // {id} or {file}: what was asked last

history.scrollRestoration = "manual";

// What is said

const base = (path) => path.split(/[/\\]/).pop();
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;

function wrong(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
  if (text) $("status").textContent = "";
}

// Another index, or a newer state of it, may be there by now. Addresses name contents, so none shows another picture.
function compare(now) {
  const other = ["index", "generation", "version"].some((key) => key in now && now[key] !== info[key]);
  const date = info.newest && new Date(1000 * info.newest).toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
  $("newer").firstChild.data = `${number.format(info.pictures)} pictures${date ? ` of ${date}` : ""}; newer there: `;
  $("newer").hidden = !other;
}
const look = () => info && engine.now().then(compare, () => {});
addEventListener("visibilitychange", () => document.hidden || look());
if (engine.keep) navigator.serviceWorker?.addEventListener("controllerchange", look);
$("newer").lastChild.addEventListener("click", async (event) => {
  event.preventDefault();
  $("newer").lastChild.textContent = "loading…";
  await engine.renew().catch(() => {});
  location.reload();
});

function describe(answer) {
  const n = answer.results.length;
  const found = n ? `${number.format(n)} nearest of ${number.format(answer.searched)} pictures` : "Nothing that near";
  const hashed = answer.hash_ms ? `hashed in ${milliseconds(answer.hash_ms)}` : "its code was known";
  const among = n ? "" : ` among ${number.format(answer.searched)} pictures: allow a larger distance or another folder`;
  $("status").textContent = `${found}${among} · ${hashed} · searched in ${milliseconds(answer.search_ms)}`;
}

// The grid

// Thumbnails are fetched when they come near.
const near = new IntersectionObserver((seen) => {
  for (const { target } of seen.filter((one) => one.isIntersecting)) {
    near.unobserve(target);
    target.load();
  }
}, { rootMargin: "200px" });

function tile({ id, path, distance, rank, same, heading }) {
  const item = document.createElement("li");
  if (heading) {
    item.className = "heading";
    item.textContent = heading;
    return item;
  }
  const button = document.createElement("button");
  const picture = document.createElement("img");
  item.className = "hit";
  item.dataset.id = id;
  button.type = "button";
  button.tabIndex = -1;
  button.title = path;
  const known = distance === undefined;
  button.setAttribute("aria-label", known ? `Search by ${base(path)}` : `${rank}: ${base(path)}, ${distance} of ${info.bits} bits differ${same ? ", likely the same picture" : ""}. Search by it`);
  picture.alt = "";
  picture.draggable = false;
  picture.onload = () => picture.classList.add("there");
  const failed = (text) => {
    button.title = text;
    look();
  };
  picture.onerror = () => failed(`${path}: its thumbnail can't be had`);
  item.load = () => engine.thumbnail(id).then((address) => (picture.src = address), (error) => failed(error.message));
  near.observe(item);
  button.append(picture);
  if (!known) {
    const mark = document.createElement("span");
    mark.className = distance ? "distance" : "distance same";
    mark.textContent = distance;
    mark.title = `${distance} of ${info.bits} bits differ`;
    button.append(mark);
    if (same) {
      const likely = document.createElement("span");
      likely.className = "likely";
      likely.textContent = "likely the same";
      button.append(likely);
    }
  }
  item.append(button);
  const caption = document.createElement("p");
  const name = document.createElement("span");
  caption.className = "caption";
  name.textContent = base(path);
  name.title = path;
  caption.append(name);
  const address = engine.original(id);
  if (address) {
    const link = document.createElement("a");
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener";
    link.tabIndex = -1;
    link.textContent = "↗";
    link.title = `Open ${path}`;
    link.setAttribute("aria-label", `Open ${base(path)} (key: o)`);
    caption.append(link);
  }
  item.append(caption);
  return item;
}

function more(count) {
  const next = hits.slice(shown, shown + count);
  shown += next.length;
  $("results").append(...next.map(tile));
  $("end").textContent = hits.length && shown === hits.length && question ? "That is all." : "";
}

function fill(results, count = BATCH) {
  hits = results;
  shown = 0;
  near.disconnect();
  $("results").replaceChildren();
  more(count);
  const first = $("results").querySelector("button");
  if (first) first.tabIndex = 0;
}

new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && shown < hits.length && more(BATCH), {
  rootMargin: "800px",
}).observe($("end"));
// A tall screen may show the end of a batch and of the next: look again after each.
new ResizeObserver(() => {
  if (shown < hits.length && $("end").getBoundingClientRect().top < innerHeight + 800) more(BATCH);
}).observe($("results"));

// Asking

function options() {
  const value = (id) => ($(id).value === "" ? null : $(id).valueAsNumber);
  for (const id of ["k", "radius"]) {
    if (!$(id).checkValidity()) throw new Error(`${id === "k" ? "Nearest" : "Within"}: ${$(id).validationMessage}`);
  }
  return { k: value("k"), radius: value("radius"), folder: $("folder").value };
}

function check(file) {
  const mib = 2 ** 20;
  if (!file.size) throw new Error(`${file.name}: it is empty, or no file`);
  if (file.type && !file.type.startsWith("image/")) throw new Error(`${file.name}: it is no picture (${file.type})`);
  if (file.size > info.max_upload) {
    throw new Error(`${file.name}: ${(file.size / mib).toFixed(1)} MiB is too large; at most ${info.max_upload / mib}`);
  }
}

async function preview(asked) {
  const picture = $("picture");
  const address = asked.file ? URL.createObjectURL(asked.file) : await engine.thumbnail(asked.id);
  if (question !== asked) return;
  if (picture.src.startsWith("blob:") && picture.dataset.own) URL.revokeObjectURL(picture.src);
  picture.dataset.own = asked.file ? "yes" : "";
  picture.hidden = false;
  picture.onerror = () => (picture.hidden = true); // a TIFF, say, that this browser can't show
  picture.src = address;
  const open = asked.file ? null : engine.original(asked.id);
  $("open").hidden = !open;
  if (open) $("open").href = open;
}

async function ask(asked, { count = BATCH, scroll = 0, focus = false } = {}) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  question = asked;
  wrong($("note").textContent = "");
  body.dataset.state = "asked";
  body.classList.add("busy");
  $("title").textContent = asked.file ? asked.file.name || "Your picture" : "";
  $("hint").textContent = asked.file ? "your picture" : "from the index";
  $("picture").hidden = $("open").hidden = true;
  try {
    if (asked.file) check(asked.file);
    preview(asked).catch(() => {});
    const answer = await engine.search({ ...asked, ...options() }, signal);
    if (signal.aborted) return;
    const name = asked.file?.name ?? answer.query;
    $("title").textContent = base(name);
    $("title").title = name;
    document.title = `${base(name)} – search by picture`;
    const same = new Set(answer.likely_same);
    fill(answer.results.map((hit) => ({ ...hit, same: same.has(hit.id) })), Math.max(count, BATCH));
    describe(answer);
    $("note").textContent = answer.note ?? "";
    compare(answer);
    scrollTo(0, scroll);
    if (focus) $("results").querySelector("button")?.focus({ preventScroll: true });
  } catch (error) {
    if (signal.aborted) return;
    fill([]);
    wrong(error.message);
    look();
  } finally {
    if (!signal.aborted) body.classList.remove("busy");
  }
}

// The history: an indexed picture has an address of its own; a file is kept as long as the page.

function address(asked) {
  const words = new URLSearchParams();
  if (asked && !asked.file) words.set("id", asked.id);
  if (asked) {
    for (const id of ["k", "radius", "folder"]) {
      if ($(id).value !== $(id).dataset.usual) words.set(id, $(id).value);
    }
  }
  return `${location.pathname}${words.size ? `?${words}` : ""}`;
}

const keep = () => history.replaceState({ ...history.state, shown, scroll: scrollY }, "");

function go(asked, more = {}) {
  keep();
  const state = { id: asked.id };
  if (asked.file) files.set((state.file = files.size + 1), asked.file);
  history.pushState(state, "", address(asked));
  return ask(asked, more);
}

function start() {
  asking.abort();
  question = null;
  body.classList.remove("busy");
  body.dataset.state = "start";
  document.title = "Search by picture";
  $("title").textContent = "Which pictures look like yours?";
  $("title").title = "";
  $("hint").textContent = "Drop one anywhere on this page, paste it, or";
  $("picture").hidden = $("open").hidden = true;
  $("note").textContent = "";
  wrong(info.problem || "");
  fill(info.problem ? [] : info.examples);
  $("status").textContent = info.problem || !info.examples.length ? "" : "Or begin with one of these:";
  scrollTo(0, 0);
}

// Pictures that are there more than once, the one to keep first.
async function copies() {
  start();
  body.dataset.state = "copies";
  body.classList.add("busy");
  $("status").textContent = "Comparing all pictures…";
  try {
    const groups = await engine.duplicates();
    if (body.dataset.state !== "copies") return;
    fill(groups.flatMap((pictures) => {
      const others = pictures.slice(1);
      const near = others.some(({ kind }) => kind !== "same bytes") ? "alike: look before you delete any" : "of the same bytes";
      const kib = Math.ceil(others.reduce((sum, { bytes }) => sum + bytes, 0) / 1024);
      return [{ heading: `${pictures.length} ${near}; keep the first (the others take ${number.format(kib)} KiB)` }, ...pictures];
    }));
    $("status").textContent = groups.length
      ? `${number.format(groups.length)} groups. Nothing is deleted here; python -m search duplicates writes the list.` : "No picture is there more than once.";
  } catch (error) {
    fill([]);
    wrong(error.message);
  } finally {
    body.classList.remove("busy");
  }
}

function show(state) {
  const words = new URLSearchParams(location.search);
  for (const id of ["k", "radius", "folder"]) $(id).value = words.get(id) ?? $(id).dataset.usual;
  const place = { count: state?.shown, scroll: state?.scroll };
  if (state?.file) {
    if (files.has(state.file)) return ask({ file: files.get(state.file) }, place);
    start();
    return wrong("That picture was not kept when the page was closed; choose it again.");
  }
  if (words.has("duplicates") && engine.duplicates) return copies();
  return words.has("id") ? ask({ id: words.get("id") }, place) : start();
}

addEventListener("popstate", (event) => show(event.state));
let kept;
addEventListener("scroll", () => {
  clearTimeout(kept);
  kept = setTimeout(keep, 200);
}, { passive: true });
$("home").addEventListener("click", (event) => {
  event.preventDefault();
  keep();
  history.pushState(null, "", location.pathname);
  show(null);
});

// A picture comes in

function take(list, none) {
  if (!info) return;
  const picture = [...list].find((file) => file.type.startsWith("image/")) ?? list[0];
  if (picture) go({ file: picture });
  else wrong(none);
}

for (const id of ["choose", "photograph"]) {
  $(id).addEventListener("change", (event) => {
    if (event.target.files.length) take(event.target.files, "");
    event.target.value = ""; // the same file may be chosen again
  });
}
addEventListener("paste", (event) => {
  if (event.target.matches?.("input:not([type=file])")) return;
  event.preventDefault();
  take(event.clipboardData.files, "There is no picture on the clipboard.");
});
let depth = 0;
const dragging = (by) => body.classList.toggle("dragging", (depth = by ? Math.max(0, depth + by) : 0) > 0);
addEventListener("dragenter", () => dragging(1));
addEventListener("dragleave", () => dragging(-1));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  dragging(0);
  take(event.dataTransfer.files, "What was dropped is no file. Save the picture first, then drop it here.");
});

$("ask").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["k", "radius", "folder"]) {
  $(id).addEventListener("change", () => {
    if (!question) return;
    history.replaceState(history.state, "", address(question));
    ask(question);
  });
}

// The grid by mouse and by keyboard: one tile is in the order of tabs, arrows go on from it

$("results").addEventListener("click", (event) => {
  const item = event.target.closest("button")?.closest("li");
  if (item) go({ id: item.dataset.id }, { focus: true });
});
$("results").addEventListener("focusin", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  $("results").querySelectorAll("button[tabindex='0']").forEach((other) => (other.tabIndex = -1));
  button.tabIndex = 0;
});
$("results").addEventListener("keydown", (event) => {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const items = [...$("results").children];
  const at = items.indexOf(event.target.closest("li"));
  if (at < 0) return;
  const row = items.findIndex((item) => item.offsetTop > items[0].offsetTop);
  const columns = row < 0 ? items.length : row;
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -at, End: items.length - 1 - at };
  if (event.key in steps) {
    event.preventDefault();
    const to = items[at + steps[event.key]];
    to?.querySelector("button")?.focus();
  } else if (event.key === "o") {
    items[at].querySelector("a")?.click();
  }
});

// Opening

// Folders of pictures and those above them, less what all have in common.
function listed(folders) {
  const all = new Set();
  for (const folder of folders) {
    const parts = folder.split("/");
    for (let n = parts.length; n > 0; n--) all.add(parts.slice(0, n).join("/"));
  }
  const top = [...all].filter((above) => folders.every((folder) => folder === above || folder.startsWith(`${above}/`)));
  const common = top.sort((a, b) => b.length - a.length)[0] ?? "";
  const below = [...all].filter((folder) => folder !== common && folder.startsWith(common && `${common}/`)).sort();
  const skip = common.split("/").length;
  return below.map((folder) => {
    const parts = folder.split("/").slice(common ? skip : 0);
    return new Option("\u2003".repeat(parts.length - 1) + parts.at(-1), folder);
  });
}

function introduce() {
  const { student, bits, pictures, folders } = info;
  $("about").textContent = [`${number.format(pictures)} pictures`, `${bits} bits`, student.backbone].filter(Boolean).join(" · ");
  $("k").max = info.max_k;
  $("radius").max = bits;
  $("bits").textContent = `of ${bits} bits`;
  const options = listed(folders);
  $("folder").append(...options);
  $("folder").closest("label").hidden = !options.length;
  for (const id of ["k", "radius", "folder"]) $(id).dataset.usual = $(id).value;
  $("api").hidden = engine.original(0) === null;
  $("copies").hidden = !engine.duplicates;
  $("copies").addEventListener("click", (event) => {
    event.preventDefault();
    keep();
    history.pushState(null, "", "?duplicates");
    show(null);
  });
  $("keep").hidden = !engine.keep || !navigator.serviceWorker;
  $("keep").textContent = `Keep for use without a network (${Math.ceil(info.later / 2 ** 20)} MiB)`;
  $("keep").addEventListener("click", async () => {
    $("keep").disabled = true;
    const kept = (document.documentElement.dataset.offline = await engine.keep());
    $("keep").hidden = kept === "yes";
    if (kept !== "yes") $("keep").textContent = "There was no room, or no network, for all of it";
  });
}

try {
  info = await engine.open((text) => ($("status").textContent = text));
  introduce();
  show(history.state);
} catch (error) {
  wrong(error.message);
}
