"""The page's server under load and under damaged uploads, and the browser as the engine.

python benchmarks/search_page.py --student STUDENT                      # 8 clients, a million codes, 1,000 uploads
python benchmarks/search_page.py --student STUDENT --codes 10000 --requests 80 --uploads 50 --pictures 5   # a try
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "benchmarks"))

import fault_mutations as blows  # noqa: E402

from retrieval.exported import Exported  # noqa: E402
from retrieval.index import Index, Row  # noqa: E402
from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

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

    def blow(data: bytes) -> bytes:
        place, there = (int(draw.choice([draw.randint(64), draw.randint(2**20), -draw.randint(1, 64)])) for _ in "12")
        length = int(draw.choice([draw.randint(1, 17), draw.randint(1, 5000)]))
        return (
            lambda: blows.flip(data, place, draw.randint(8)),
            lambda: blows.cut(data, place),
            lambda: blows.drop(data, place, length),
            lambda: blows.insert(data, place, draw.bytes(draw.randint(1, 41))),
            lambda: blows.zeros(data, place, length),
            lambda: blows.repeat(data, place, length),
            lambda: blows.splice(data, whole[draw.randint(len(whole))], place, there),
        )[draw.randint(7)]()

    for i in range(n):
        data = whole[i % len(whole)]
        for _ in range(draw.randint(1, 4)):
            data = blow(data)
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
                    Row(f"/synthetic/{i // 1000}/{i}.jpg", 1, 1, i.to_bytes(32, "big"), code, b"", 0.0)
                    for i, code in enumerate(codes, start)
                ]
            )


@contextlib.contextmanager
def served(index: Path, student: Path) -> Iterator[str]:
    """`search.py serve` in a process of its own: its address."""
    words = ["serve", "--index", str(index), "--student", str(student), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, str(ROOT / "search.py"), *words], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            yield next(word for word in server.stdout.readline().split() if word.startswith("http"))
        finally:
            server.terminate()


def load(address: str, clients: int, requests: int, k: int = 100) -> dict:
    """``requests`` uploads by ``clients`` at once, each with a connection of its own."""
    pictures = [encoded(photograph(seed), "JPEG") for seed in range(16)]
    seconds: list[float] = []
    failed: Counter = Counter()

    def client(number: int) -> None:
        with httpx.Client(base_url=address, timeout=120) as session:
            for i in range(number, requests, clients):
                start = time.perf_counter()
                answer = session.post("/api/search", data={"k": k}, files={"file": ("q.jpg", pictures[i % 16])})
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


def measure(student: Path, codes: int, requests: int, uploads: int, pictures: int, clients: int = 8) -> dict:
    """All figures; see the options."""
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder) / "index"
        write_index(index, Exported(student), codes)
        with served(index, student) as address:
            load(address, clients, 4 * clients)  # warm
            result = {"codes": codes, **load(address, clients, requests)}
            result["damaged"] = damaged_uploads(address, uploads)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="an export folder")
    parser.add_argument("--codes", type=int, default=1_000_000, help="in the index, random")
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--uploads", type=int, default=1000, help="damaged ones")
    parser.add_argument("--pictures", type=int, default=50, help="hashed by the browser")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "search_page.json")
    args = parser.parse_args()
    result = measure(args.student, args.codes, args.requests, args.uploads, args.pictures)
    print(result)
    write_json(args.out, {"environment": environment(), **result})


if __name__ == "__main__":
    main()
