"""What tests of the page share: drawn pictures, an index of them, a server and a browser."""

import contextlib
import io
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from exports import write_export
from PIL import Image
from playwright.sync_api import Page, expect

from models.exported import Exported
from search import adding
from search.index import Index
from search.server import listen

MARKUP = "<img src=x onerror=alert(1)>&amp;'\".jpg"


def draw(seed: int, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A smooth picture, another one for every seed."""
    fields = np.random.RandomState(seed).randint(0, 256, (5, 5, 3)).astype(np.uint8)
    return Image.fromarray(fields).resize(size, Image.Resampling.BICUBIC)


def as_bytes(image: Image.Image, kind: str = "PNG", **more) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def add(index: Index, student: Exported, path: Path) -> int:
    """Add a picture, or a folder of them; the last one's id."""
    adding.add(index, student, adding.checked([path]))
    return index.codes()[0][-1].item()


def write_index(folder: Path, n: int = 90) -> tuple[Path, Exported]:
    """An index of ``n`` drawn pictures in three folders, one with a name of markup, and its student."""
    student = Exported(write_export(folder / "student"))
    pictures = folder / "pictures"
    for seed in range(n):
        path = pictures / ("a", "b", "b/deep")[seed % 3] / f"picture{seed:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw(seed).save(path, quality=90)
    (pictures / "a/picture0003.jpg").rename(pictures / "a" / MARKUP)
    with Index(folder / "index", write=True) as index:
        add(index, student, pictures)
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


expect.set_options(timeout=20_000)  # of a busy machine
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "has_touch": True, "is_mobile": True}


@contextlib.contextmanager
def opened(chromium, address: str, **how) -> Iterator[Page]:
    """A page that has begun; whatever it says on the console of errors of its own is a failure."""
    with chromium.new_context(**how) as context:
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        page, said = context.new_page(), []
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", lambda message: said.append(message.text) if "Content Security" in message.text else None)
        page.goto(address)
        page.wait_for_selector("body[data-state=start]")
        yield page
        assert not said


def drop(page: Page, file: Path) -> None:
    """Drag a file of this machine onto the page and let go, as the browser's own events."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(file)], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 200, "data": data})
        if kind == "dragOver":
            page.wait_for_selector("#drop", state="visible")
    page.wait_for_selector("#drop", state="hidden")


def paste(page: Page, png: bytes | None) -> None:
    """Put a picture, or words, on the clipboard and press Ctrl-V."""
    page.evaluate(
        """(bytes) => navigator.clipboard.write([new ClipboardItem(bytes
            ? { "image/png": new Blob([new Uint8Array(bytes)], { type: "image/png" }) }
            : { "text/plain": new Blob(["words"], { type: "text/plain" }) })])""",
        None if png is None else list(png),
    )
    page.keyboard.press("Control+v")


def find_alike(page: Page, n: int = 0) -> None:
    """Search by the n-th tile, as a person does."""
    page.locator(".hit button").nth(n).click()
    page.locator("#alike").click()


def shown(page: Page) -> list[tuple[str, int]]:
    """(id, distance) of the tiles, once the answer is there."""
    page.wait_for_selector("body:not(.busy) .grade")
    pairs = page.evaluate("""[...document.querySelectorAll(".hit")].map((e) =>
        [e.dataset.id, Number(e.dataset.distance)])""")
    return [tuple(pair) for pair in pairs]


SIZES = [(320, 640), (740, 360), (1440, 900)]


def everybody_can_use(page: Page) -> None:
    """All that is to be seen, the viewer and the duplicates too: axe finds no fault, and nothing sticks out."""
    axe = Axe()
    page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
    page.evaluate("document.querySelector('#folder').append(new Option('long '.repeat(30)))")
    expect(page.locator(".hit img.there").first).to_be_visible()
    for step in ("#home", ".hit button", "#alike", "#copies"):
        page.locator(step).first.click()
        if step == "#alike":
            shown(page)
        if step == "#copies":
            expect(page.locator(".heading")).to_have_count(1)
        expect(page.locator("body.busy")).to_have_count(0)
        found = [(one["id"], one["nodes"][0]["html"]) for one in axe.run(page).response["violations"]]
        assert not found, (step, found)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), step
