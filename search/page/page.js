// The page: a question (a picture of yours, or one of the index), its answer as a grid, and the way back.
// What answers is an engine: server.js, or browser.js on a site without a server. Both have open, now, browse, search,
// renew, thumbnail, original (with preview, or null); duplicates and keep or null.

const engine = await import(`./${document.documentElement.dataset.engine}.js`);
const BATCH = 60; // tiles that are added at a time
const FILTERS = ["k", "radius", "folder", "after", "before"]; // of the form

const $ = (id) => document.getElementById(id);
const body = document.body;
const number = new Intl.NumberFormat("en-GB");
const files = new Map(); // pictures of this visit, by the number that the history keeps
let info = null;
let asking = new AbortController();
let hits = []; // of the last answer, those that are not shown yet among them
let shown = 0;
let onward = null; // gets further hits
let question = null; // {id} or {file, name}: what the bar shows
let answered = null; // the one that the grid is of
let top = ""; // the folder that all others are in

history.scrollRestoration = "manual";

// What is said

const base = (path) => path.split(/[/\\]/).pop();
const folderOf = (path) => path.slice(0, -base(path).length - 1);
const below = (folder) => folder.slice(top.length).replace(/^[/]/, "");
const NONE = "No picture is of that folder and those days.";
const milliseconds = (ms) => `${ms < 10 ? ms.toFixed(1) : Math.round(ms)} ms`;
const day = (seconds, month = "short") => {
  const date = new Date(1000 * seconds); // as the clock showed it there: no zone of ours
  return isNaN(date) ? "" : date.toLocaleDateString("en-GB", { day: "numeric", month, year: "numeric", timeZone: "UTC" });
};
const size = (bytes) => (bytes < 1e6 ? `${Math.ceil(bytes / 1e3)} kB` : `${(bytes / 1e6).toFixed(1)} MB`);
// Shares of the bits that differ, at most.
const GRADES = [[1 / 8, "very alike"], [1 / 4, "alike"], [1, "loosely alike"]];
const grade = ({ distance, same }) => (same ? "likely the same" : GRADES.find(([share]) => distance <= share * info.bits)[1]);

function wrong(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

// Another index, or a newer state of it, may be there by now. Addresses name contents, so none shows another picture.
function compare(now) {
  const other = ["index", "generation", "version"].some((key) => key in now && now[key] !== info[key]);
  const date = info.newest && day(info.newest - 60 * new Date().getTimezoneOffset(), "long");
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
  if (!answer.searched) return ($("status").textContent = NONE);
  const pictures = `${number.format(answer.searched)} pictures`;
  $("status").textContent = n ? `The ${number.format(n)} most alike of ${pictures}` : `Nothing that near among ${pictures}`;
  const hashed = answer.hash_ms ? `hashed in ${milliseconds(answer.hash_ms)}` : "its code was known";
  $("timing").textContent = `${info.student.backbone ?? "student"}, ${hashed}, searched in ${milliseconds(answer.search_ms)}`;
}

// The grid

// Thumbnails are fetched when they come near.
const near = new IntersectionObserver((seen) => {
  for (const { target } of seen.filter((one) => one.isIntersecting)) {
    near.unobserve(target);
    target.load();
  }
}, { rootMargin: "200px" });

function make(tag, name, text) {
  const element = document.createElement(tag);
  element.className = name;
  element.textContent = text;
  return element;
}

function tile(hit) {
  const { id, path, distance, taken, heading } = hit;
  if (heading) return make("li", "heading", heading);
  const item = make("li", "hit", "");
  const button = make("button", "", "");
  const picture = document.createElement("img");
  item.dataset.id = id;
  button.type = "button";
  button.tabIndex = -1;
  button.title = path;
  picture.alt = "";
  picture.draggable = false;
  picture.onload = () => picture.classList.add("there");
  item.load = () => engine.thumbnail(id).then((address) => (picture.src = address), picture.onerror);
  picture.onerror = () => {
    picture.replaceWith(make("span", "none", "no preview"));
    look();
  };
  near.observe(item);
  button.append(picture);
  item.append(button);
  const said = [base(path), below(folderOf(path)), day(taken)];
  if (distance !== undefined) {
    item.dataset.distance = distance;
    button.append(make("span", hit.same ? "grade same" : "grade", grade(hit)));
    said.splice(1, 0, grade(hit));
  }
  button.setAttribute("aria-label", `View ${said.filter(Boolean).join(", ")}`);
  const caption = make("p", "caption", "");
  caption.append(make("span", "file", base(path)), make("span", "place", below(folderOf(path))), make("span", "day", day(taken)));
  item.append(caption);
  return item;
}

async function more(count) {
  if (shown === hits.length && onward) {
    const get = onward;
    onward = null; // until it has answered
    const further = await get().catch((error) => wrong(error.message));
    if (!further || hits !== further.hits) return;
    hits.push(...further.results);
    if (further.pictures > hits.length) onward = get;
  }
  const next = hits.slice(shown, shown + count);
  shown += next.length;
  $("results").append(...next.map(tile));
  $("end").textContent = hits.length && shown === hits.length && !onward && body.dataset.state !== "copies" ? "That is all." : "";
}

function fill(results, count = BATCH, get = null) {
  hits = results;
  onward = get;
  shown = 0;
  near.disconnect();
  $("results").replaceChildren();
  more(count);
  const first = $("results").querySelector("button");
  if (first) first.tabIndex = 0;
}

new IntersectionObserver((seen) => seen.some((s) => s.isIntersecting) && (shown < hits.length || onward) && more(BATCH), {
  rootMargin: "800px",
}).observe($("end"));
// A tall screen may show the end of a batch and of the next: look again after each.
new ResizeObserver(() => {
  if ((shown < hits.length || onward) && $("end").getBoundingClientRect().top < innerHeight + 800) more(BATCH);
}).observe($("results"));

// The viewer: the original where this browser shows it, else what the server makes of it, else the thumbnail

let at = 0; // which of the hits it shows
const whole = new Image();
let instead = ""; // of an original that this browser does not show
whole.onload = () => ($("large").src = whole.src);
whole.onerror = () => {
  if (instead) whole.src = instead;
  instead = "";
};
const UNSHOWN = /\.(hei[cf]|tiff?)$/i; // by browsers but Safari: not fetched in vain

function view(to) {
  const hit = hits[to];
  if (!hit) return;
  at = to;
  if (to >= shown - 1) more(BATCH).then(steps);
  const { id, path, distance, taken, bytes } = hit;
  $("file").textContent = $("large").alt = base(path);
  $("where").textContent = [distance !== undefined && grade(hit), below(folderOf(path)), day(taken)].filter(Boolean).join(" · ");
  const clock = isNaN(new Date(1000 * taken)) ? "" : ` ${new Date(1000 * taken).toISOString().slice(11, 19)}`;
  const facts = { Path: path, Date: `${day(taken)}${clock}` };
  if (bytes !== undefined) facts.Size = size(bytes);
  if (distance !== undefined) facts.Distance = `${distance} of ${info.bits} bits differ`;
  $("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", value)]));
  const original = engine.original(id);
  $("open").hidden = !original;
  if (original) $("open").href = original;
  $("large").removeAttribute("src");
  whole.removeAttribute("src");
  engine.thumbnail(id).catch(() => "").then((address) => {
    if (at !== to) return;
    if (address) $("large").src = address;
    if (!original) return;
    instead = engine.preview(id);
    whole.src = UNSHOWN.test(path) ? instead : original;
  });
  steps();
  if (!$("view").open) $("view").showModal();
}

const STEPS = [["previous", -1, "ArrowLeft"], ["next", 1, "ArrowRight"]];

const steps = () => STEPS.forEach(([button, by]) => $(button).setAttribute("aria-disabled", !hits[beside(by)]));

function beside(by) {
  let to = at + by;
  while (hits[to]?.heading) to += by;
  return to;
}

for (const [button, by, key] of STEPS) {
  $(button).addEventListener("click", () => view(beside(by)));
  $("view").addEventListener("keydown", (event) => event.key === key && view(beside(by)));
}
$("folder-of").addEventListener("click", () => {
  keep();
  for (const id of FILTERS) $(id).value = $(id).dataset.usual;
  $("folder").value = folderOf(hits[at].path);
  if ($("folder").selectedIndex < 0) $("folder").value = ""; // the one above all
  history.pushState(null, "", address(null));
  start();
});
$("close").addEventListener("click", () => $("view").close());
$("alike").addEventListener("click", () => ask({ id: hits[at].id }, { focus: true, push: true }));
$("view").addEventListener("close", () => $("results").children[at]?.querySelector("button")?.focus());

// Asking

function options() {
  for (const id of FILTERS) {
    if (!$(id).checkValidity()) throw new Error(`${$(id).labels[0].firstChild.data.trim()}: ${$(id).validationMessage}`);
  }
  const number = (id) => ($(id).value === "" ? null : $(id).valueAsNumber);
  return { k: number("k"), radius: number("radius"), ...days() };
}

// The last day is one of them; who answers wants the day after.
function days() {
  const next = new Date($("before").valueAsNumber + 864e5);
  return { folder: $("folder").value, after: $("after").value, before: isNaN(next) ? "" : next.toISOString().slice(0, 10) };
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
}

// What is asked, or the invitation to ask.
function bar(asked, state = asked ? "asked" : "start") {
  $("view").close();
  body.dataset.state = state;
  const name = asked && (asked.name ? base(asked.name) : "One of these pictures");
  $("title").textContent = name ?? (state === "copies" ? "Pictures that are there more than once" : "Which pictures look like yours?");
  $("title").title = asked?.name ?? "";
  document.title = asked?.name || state === "copies" ? `${name ?? "Duplicates"} – search by picture` : "Search by picture";
  $("hint").textContent = !asked ? "Drop one anywhere on this page, paste it, or" : asked !== answered ? "Searching…" : asked.file ? "your picture" : "from the index";
  if (question === asked) return;
  question = asked;
  $("picture").hidden = true;
  if (asked) preview(asked).catch(() => {});
}

// What fails leaves the question and the answer before it where they are.
async function ask(asked, { count = BATCH, scroll = 0, focus = false, push = false } = {}) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  const { state } = body.dataset;
  wrong("");
  body.classList.add("busy");
  bar(asked);
  try {
    if (asked.file) check(asked.file);
    const answer = await engine.search({ ...asked, ...options() }, signal);
    if (signal.aborted) return;
    if (push) visit(asked);
    asked.name ??= answer.query;
    bar((answered = asked));
    const same = new Set(answer.likely_same);
    fill(answer.results.map((hit) => ({ ...hit, same: same.has(hit.id) })), Math.max(count, BATCH));
    describe(answer);
    $("note").textContent = answer.note ?? "";
    compare(answer);
    scrollTo(0, scroll);
    if (focus) $("results").querySelector("button")?.focus({ preventScroll: true });
  } catch (error) {
    if (signal.aborted) return;
    if (state === "opening") await start();
    else bar(answered, answered ? "asked" : state === "copies" ? state : "start");
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
  for (const id of asked ? FILTERS : FILTERS.slice(2)) {
    if ($(id).value !== $(id).dataset.usual) words.set(id, $(id).value);
  }
  return `${location.pathname}${words.size ? `?${words}` : ""}`;
}

const keep = () => history.replaceState({ ...history.state, shown, scroll: scrollY }, "");

function visit(asked) {
  keep();
  const state = { id: asked.id };
  if (asked.file) files.set((state.file = files.size + 1), asked.file);
  history.pushState(state, "", address(asked));
}

// All pictures, the newest first.
async function start({ count = BATCH, scroll = 0 } = {}) {
  asking.abort();
  asking = new AbortController();
  const { signal } = asking;
  answered = null;
  bar(null);
  $("note").textContent = $("timing").textContent = "";
  wrong(info.problem || "");
  body.classList.toggle("busy", !info.problem);
  if (info.problem) return fill([]);
  const filters = days();
  const page = (start, n) => engine.browse({ ...filters, start, n });
  try {
    const first = await page(0, Math.min(Math.max(count, BATCH), info.max_k));
    if (signal.aborted) return;
    const { results } = first;
    const further = () => page(results.length, BATCH).then((next) => ({ ...next, hits: results }));
    fill(results, results.length, first.pictures > results.length ? further : null);
    $("status").textContent = first.pictures ? `${number.format(first.pictures)} pictures, the newest first` : NONE;
    compare(first);
    scrollTo(0, scroll);
  } catch (error) {
    if (!signal.aborted) wrong(error.message);
  } finally {
    if (!signal.aborted) body.classList.remove("busy");
  }
}

// Pictures that are there more than once, the one to keep first.
async function copies() {
  asking.abort();
  answered = null;
  bar(null, "copies");
  wrong($("note").textContent = $("timing").textContent = "");
  fill([]);
  body.classList.add("busy");
  $("status").textContent = "Comparing all pictures…";
  try {
    const groups = await engine.duplicates();
    if (body.dataset.state !== "copies") return;
    fill(groups.flatMap((pictures) => {
      const others = pictures.slice(1);
      const near = others.some(({ kind }) => kind !== "same bytes") ? "alike: look before you delete any" : "of the same bytes";
      const bytes = others.reduce((sum, { bytes }) => sum + bytes, 0);
      return [{ heading: `${pictures.length} ${near}; keep the first (the others take ${size(bytes)})` }, ...pictures];
    }));
    $("status").textContent = groups.length
      ? `${groups.length === 1 ? "1 group" : `${number.format(groups.length)} groups`}. Nothing is deleted here; python -m search duplicates writes the list.` : "No picture is there more than once.";
  } catch (error) {
    fill([]);
    wrong(error.message);
  } finally {
    body.classList.remove("busy");
  }
}

async function show(state) {
  const words = new URLSearchParams(location.search);
  for (const id of FILTERS) $(id).value = words.get(id) ?? $(id).dataset.usual;
  const place = { count: state?.shown, scroll: state?.scroll };
  if (state?.file) {
    const file = files.get(state.file);
    if (file) return ask({ file, name: file.name || "Your picture" }, place);
    await start();
    return wrong("That picture was not kept when the page was closed; choose it again.");
  }
  if (words.has("duplicates") && engine.duplicates) return copies();
  await (words.has("id") ? ask({ id: words.get("id") }, place) : start(place));
  const folder = words.get("folder");
  if (folder && folder !== $("folder").value) wrong(`${folder}: no picture lies there any more; all folders are shown.`);
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
  if (picture) ask({ file: picture, name: picture.name || "Your picture" }, { push: true });
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

// Filters are folded where there is little room.
const roomy = matchMedia("(min-width: 60rem) and (min-height: 30rem)");
(roomy.onchange = () => ($("filters").open ||= roomy.matches))();
$("ask").addEventListener("submit", (event) => event.preventDefault());
for (const id of FILTERS) {
  $(id).addEventListener("change", () => {
    history.replaceState(history.state, "", address(question));
    return question ? ask(question) : start();
  });
}

// The grid by mouse and by keyboard: one tile is in the order of tabs, arrows go on from it

$("results").addEventListener("click", (event) => {
  const item = event.target.closest("button")?.closest("li");
  if (item) view([...$("results").children].indexOf(item));
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
  const inside = (folder, above) => !above || folder === above || folder.startsWith(`${above}/`);
  top = [...all].filter((above) => folders.every((folder) => inside(folder, above))).sort((a, b) => b.length - a.length)[0] ?? "";
  return [...all].filter((folder) => folder !== top && inside(folder, top)).sort().map((folder) => {
    const parts = below(folder).split("/");
    return new Option("\u2003".repeat(parts.length - 1) + parts.at(-1), folder);
  });
}

function introduce() {
  const { bits, pictures, folders } = info;
  $("about").textContent = `${number.format(pictures)} pictures`;
  $("k").max = info.max_k;
  $("radius").max = bits;
  $("bits").textContent = `of ${bits} bits`;
  const options = listed(folders);
  $("folder").append(...options);
  $("folder").closest("label").hidden = !options.length;
  for (const id of FILTERS) $(id).dataset.usual = $(id).value;
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
  $("status").textContent = "";
  wrong(error.message);
}
