"""The page's server under load and under damaged uploads, and the browser as the engine.

python benchmarks/search_page.py --student STUDENT                      # 8 clients, a million codes, 1,000 uploads
python benchmarks/search_page.py --student STUDENT --index INDEX        # and by 8 and 64 clients, of an index you have
python benchmarks/search_page.py --student STUDENT --codes 10000 --requests 80 --uploads 50 --pictures 5   # a try
"""

import argparse
import base64
import contextlib
import io
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from damage import KINDS as KINDS_OF_DAMAGE  # noqa: E402
from damage import blow  # noqa: E402

from data.decode import pixels_of  # noqa: E402
from data.tree import images_below  # noqa: E402
from models.exported import Exported  # noqa: E402
from search import site  # noqa: E402
from search.index import Index, Row  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

BROWSER_CODES = 1_000_000  # at most
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def photograph(seed: int, size: tuple[int, int] = (640, 480)) -> Image.Image:
    """A drawn picture that compresses about as a photograph does."""
    draw = np.random.RandomState(seed)
    smooth = Image.fromarray(draw.randint(0, 256, (9, 12, 3)).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    noise = draw.randint(-12, 13, (size[1], size[0], 1))
    return Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def mutated(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """(name, content) of damaged picture files of every format."""
    draw = np.random.RandomState(seed)
    whole = [encoded(photograph(s, (120, 90)), kind) for s in range(2) for kind in KINDS]

    def hit(data: bytes) -> bytes:
        place = int(draw.choice([draw.randint(64), draw.randint(2**20), -draw.randint(1, 64)]))
        length = int(draw.choice([draw.randint(1, 17), draw.randint(1, 5000)]))
        more = draw.bytes(draw.randint(1, 41)) if draw.randint(2) else whole[draw.randint(len(whole))][length:]
        return blow(data, str(draw.choice(KINDS_OF_DAMAGE)), place, length, more)

    for i in range(n):
        data = whole[i % len(whole)]
        for _ in range(draw.randint(1, 4)):
            data = hit(data)
        yield f"{KINDS[i % len(KINDS)].lower()}{i}", data


def write_index(file: Path, student: Exported, n: int) -> None:
    """An index of ``n`` random codes; their pictures do not exist."""
    draw = np.random.RandomState(0)
    with Index(file, write=True) as index:
        index.set_card(student.card, str(student.folder))
        for start in range(0, n, 50_000):
            codes = draw.randint(0, 256, (min(50_000, n - start), student.width)).astype(np.uint8)
            index.add(
                [
                    Row(f"/synthetic/{i // 1000}/{i}.jpg", 1, 1, i.to_bytes(8, "big") + bytes(24), code, b"", 0.0)
                    for i, code in enumerate(codes, start)
                ]
            )


@contextlib.contextmanager
def served(index: Path, student: Path) -> Iterator[str]:
    """`python -m search serve` in a process of its own: its address."""
    words = ["serve", "--index", str(index), "--student", str(student), "--port", "0"]
    with subprocess.Popen([sys.executable, "-m", "search", *words], stdout=subprocess.PIPE, text=True) as server:
        try:
            yield next(word for word in server.stdout.readline().split() if word.startswith("http"))
        finally:
            server.terminate()


def load(address: str, clients: int, requests: int, k: int = 100, ids: Sequence[str] = ()) -> dict:
    """``requests`` uploads, or queries by ``ids``, by ``clients`` at once, each with a connection of its own."""
    pictures = [encoded(photograph(seed), "JPEG") for seed in range(16)]
    seconds: list[float] = []
    failed: Counter = Counter()

    def client(number: int) -> None:
        with httpx.Client(base_url=address, timeout=120) as session:
            for i in range(number, requests, clients):
                start = time.perf_counter()
                file = {"file": ("q.jpg", pictures[i % 16])}
                words = {"data": {"k": k, "id": ids[i % len(ids)]}} if ids else {"data": {"k": k}, "files": file}
                answer = session.post("/api/search", **words)
                seconds.append(time.perf_counter() - start)
                if answer.status_code != 200 or len(answer.json()["results"]) != k:
                    failed[answer.status_code] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - start
    p50, p95, p99 = (1000 * np.percentile(seconds, (50, 95, 99))).round(2).tolist()
    return {
        "clients": clients,
        "requests": len(seconds),
        "p50_ms": p50,
        "p95_ms": p95,
        "p99_ms": p99,
        "requests_per_second": round(len(seconds) / wall, 1),
        "failed": dict(failed),
    }


def damaged_uploads(address: str, n: int) -> dict:
    """Answers to damaged files by status; every refusal must give a reason, and the server must live."""
    statuses, without = Counter(), 0
    with httpx.Client(base_url=address, timeout=120) as session:
        for name, content in mutated(n, seed=1):
            answer = session.post("/api/search", files={"file": (name, content)})
            statuses[answer.status_code] += 1
            without += answer.status_code != 200 and not answer.json().get("error")
        alive = (
            session.post("/api/search", files={"file": ("q.jpg", encoded(photograph(0), "JPEG"))}).status_code == 200
        )
    return {"uploads": n, "statuses": dict(sorted(statuses.items())), "without_reason": without, "alive": alive}


HASH = """async (base64) => {
    const { call } = await import("./page/browser.js");
    const file = new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], "x");
    const start = performance.now();
    const code = await call("hashed", file);
    return [[...code], performance.now() - start];
}"""


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def browser(student: Exported, codes: int = 1) -> Iterator[Page]:
    """The page of a site of random codes, in Chromium: a Chromium on PATH, or Playwright's own."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = next(filter(None, map(shutil.which, names)), None)
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        write_index(Path(folder) / "index", student, codes)
        with Index(Path(folder) / "index") as index:
            site.write_site(index, student, Path(folder) / "site", site.runtime(ROOT / "cache"))
        handler = partial(Quiet, directory=Path(folder) / "site")
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            page = playwright.chromium.launch(executable_path=path, args=["--disable-gpu"]).new_page()
            page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
            page.wait_for_selector("body[data-state=start]")
            yield page
            page.context.browser.close()
            server.shutdown()


def in_browser(page: Page, contents: Iterable[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """(codes uint8 [n, w], milliseconds [n]) of picture files, read and hashed by the browser."""
    answers = [page.evaluate(HASH, base64.b64encode(content).decode()) for content in contents]
    return np.array([code for code, _ in answers], np.uint8), np.array([ms for _, ms in answers])


def kinds_of_files(photos: Path | None, n: int, folder: Path) -> dict[str, list[bytes]]:
    """``n`` files by kind: of all kinds, made of the pictures below ``photos``, or drawn JPEGs of 640 x 480."""
    if photos is None:
        return {"drawn": [encoded(photograph(seed), "JPEG") for seed in range(n)]}
    from search_bits import photographs  # which needs PyTorch

    kinds: dict[str, list[bytes]] = {}
    for file in photographs(folder, [Path(path) for path in images_below([photos]).paths], n):
        kinds.setdefault(file.stem.split("_")[1], []).append(file.read_bytes())
    return kinds


def browser_figures(student: Exported, kinds: dict[str, list[bytes]], codes: int) -> dict:
    """Milliseconds of hashing a file and of scanning all codes, and bits that differ from Python, by kind of file."""
    files = [file for group in kinds.values() for file in group]
    kind = np.repeat(list(kinds), [len(group) for group in kinds.values()])
    with browser(student, codes) as page:
        in_browser(page, files[:3])  # warm
        found, ms = in_browser(page, files)
        scan = """async (id) => (await (await import("./page/browser.js")).call("search", { id, k: 100 })).search_ms"""
        scans = [page.evaluate(scan, f"{i:016x}") for i in range(min(20, codes))]
        version = page.context.browser.version
    start = time.perf_counter()
    known = np.array([student.code(pixels_of(io.BytesIO(file), upright=True)) for file in files])
    here = 1000 * (time.perf_counter() - start) / len(files)
    differ = np.bitwise_count(found ^ known).sum(axis=1)
    return {
        "chromium": version,
        "pictures": len(files),
        "hash_ms_median": round(float(np.median(ms)), 1),
        "hash_ms_p95": round(float(np.percentile(ms, 95)), 1),
        "hash_ms_median_by_kind": {one: round(float(np.median(ms[kind == one])), 1) for one in kinds},
        "python_ms_mean": round(here, 1),
        "bits": len(files) * student.bits,
        "bits_differ": {one: int(differ[kind == one].sum()) for one in kinds},
        "codes": codes,
        "scan_ms_median": round(float(np.median(scans)), 2),
    }


def measure(args, clients: int = 8) -> dict:
    """All figures; see the options."""
    student, codes = args.student, args.codes
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        write_index(index, Exported(student), codes)
        with served(index, student) as address:
            load(address, clients, 4 * clients)  # warm
            result = {"codes": codes, **load(address, clients, args.requests)}
            result["damaged"] = damaged_uploads(address, args.uploads)
        if args.index:
            with served(args.index, student) as address:
                listed = httpx.get(f"{address}/api/pictures", params={"n": 100}).json()
                result["index"], ids = {"pictures": listed["pictures"]}, [one["id"] for one in listed["results"]]
                for name, by in (("by id", ids), ("uploads", [])):
                    for many in (clients, 8 * clients):
                        result["index"][f"{name}, {many} clients"] = load(address, many, args.requests, ids=by)
        kinds = kinds_of_files(args.photos, args.pictures, Path(folder))
        return result | {"browser": browser_figures(Exported(student), kinds, min(codes, BROWSER_CODES))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="an export folder")
    parser.add_argument("--codes", type=int, default=1_000_000, help="in the index, random")
    parser.add_argument("--index", type=Path, help="of at least a hundred pictures")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--uploads", type=int, default=1000, help="damaged ones")
    parser.add_argument("--pictures", type=int, default=50, help="hashed by the browser")
    parser.add_argument("--photos", type=Path, help="they are of all kinds, made of the pictures in this folder")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "search_page.json")
    args = parser.parse_args()
    result = measure(args)
    print(result)
    write_json(args.out, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
