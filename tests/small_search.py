"""What tests of the page share: a student that hashes by brightness in milliseconds, untrained; an index; a server."""

import contextlib
import hashlib
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import uvicorn
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from playwright.sync_api import sync_playwright

from data.decode import pixels_of
from retrieval.exported import Exported
from retrieval.index import Index, Row
from retrieval.server import listen
from utils.files import write_json

MARKUP = "<img src=x onerror=alert(1)>&amp;'\".jpg"


def network() -> onnx.ModelProto:
    """uint8 [H, W, 3] -> uint8 [8]: each bit says whether one of 64 fields is brighter than their mean."""
    constants = {
        "to": np.array([32, 32, 3], np.int64),
        "batch": np.array([1, 1, 32, 32], np.int64),
        "flat": np.array([8, 8], np.int64),
        "channels": np.array([2], np.int64),
        "places": 2.0 ** np.arange(7, -1, -1, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Resize", ["float", "", "", "to"], ["resized"], mode="nearest"),
        node("ReduceMean", ["resized", "channels"], ["gray"], keepdims=0),
        node("Reshape", ["gray", "batch"], ["picture"]),
        node("AveragePool", ["picture"], ["fields"], kernel_shape=[4, 4], strides=[4, 4]),
        node("ReduceMean", ["fields"], ["mean"], keepdims=0),
        node("GreaterOrEqual", ["fields", "mean"], ["brighter"]),
        node("Cast", ["brighter"], ["bits"], to=TensorProto.FLOAT),
        node("Reshape", ["bits", "flat"], ["rows"]),
        node("MatMul", ["rows", "places"], ["bytes"]),
        node("Cast", ["bytes"], ["code"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info("code", TensorProto.UINT8, [8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_student(folder: Path, **more) -> Path:
    """An export folder, its card with ``more``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = network().SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    card = {
        "format": 1,
        "role": "student",
        "bits": 64,
        "method": "brightness",
        "backbone": "none",
        "backbone_sha256": "",
        "licence": "MIT",
        "size": 32,
        "crop": False,
        "precision": "float32",
        "head": "h",
        "teacher_head": None,
        "data": {"title": "none", "fingerprint": ""},
        "metrics": {},
        "flipped_bits": 0.0,
        "map_kept": 1.0,
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "versions": {},
        "commit": "",
    }
    write_json(folder / "card.json", card | more)
    return folder


def draw(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture, another one for every seed."""
    fields = np.random.RandomState(seed).randint(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


def as_bytes(image: Image.Image, kind: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def row(path: Path, student: Exported) -> Row:
    """What the index keeps of a picture."""
    content = path.read_bytes()
    pixels, facts = pixels_of(path, upright=True), path.stat()
    code, thumbnail = student.code(pixels), as_bytes(Image.fromarray(pixels), "JPEG")
    digest = hashlib.sha256(content).digest()
    return Row(str(path), facts.st_size, facts.st_mtime_ns, digest, code, thumbnail, facts.st_mtime)


def write_index(folder: Path, n: int = 90) -> tuple[Path, Exported]:
    """An index of ``n`` drawn pictures in three folders, one with a name of markup, and its student."""
    student = Exported(write_student(folder / "student"))
    pictures = folder / "pictures"
    for seed in range(n):
        path = pictures / ("a", "b", "b/deep")[seed % 3] / f"picture{seed:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(seed).save(path, quality=90)
    (pictures / "a/picture0003.jpg").rename(pictures / "a" / MARKUP)
    rows = [row(path, student) for path in sorted(pictures.rglob("*.jpg"))]
    with Index(folder / "index", write=True) as index:
        index.set_card(student.card, str(student.folder))
        index.add(rows)
    return folder / "index", student


@contextlib.contextmanager
def running(app) -> Iterator[str]:
    """The app behind a real server, in a thread: its address."""
    sock = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def chromium_path() -> str | None:
    """A Chromium on PATH, or the one that Playwright has installed."""
    found = (shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return next((path for path in found if path), own if Path(own).exists() else None)
