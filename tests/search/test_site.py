"""A site without a server: what is written, and that the browser hashes and finds as Python does."""

import base64
import contextlib
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from exports import write_export
from PIL import Image
from PIL.ImageCms import ImageCmsProfile, createProfile
from playwright.sync_api import expect
from small_search import (
    MARKUP,
    PHONE,
    SIZES,
    as_bytes,
    draw,
    drop,
    everybody_can_use,
    find_alike,
    opened,
    paste,
    running,
    shown,
    write_index,
)

sys.path.insert(0, str(ROOT / "benchmarks"))

from viewers import corpus

from data.decode import pixels_of
from models.exported import Exported
from search import adding, site
from search.asking import answers
from search.copies import look_at
from search.index import Filters, Index
from search.server import make_app
from utils.errors import UserError
from utils.files import ASIDE

# The page's own modules, as a test calls them.
HASH = """async (base64) => {
    const { call } = await import("./page/browser.js");
    const file = new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], "x");
    return [...await call("hashed", file)];
}"""
PIXELS = """async (base64) => {
    const { pixels } = await import("./page/pixels.js");
    const file = new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], "x");
    const { width, height, rgb } = await pixels(file, 64e6);
    let text = "";
    for (let i = 0; i < rgb.length; i += 8192) text += String.fromCharCode(...rgb.subarray(i, i + 8192));
    return [width, height, btoa(text)];
}"""
NEAREST = """async ([query, codes, width, k, radius]) => {
    const { nearest } = await import("./page/worker.js");
    const words = (list) => new Uint32Array(new Uint8Array(list).buffer);
    const { rows, distances } = nearest(words(query), words(codes), width, k, radius ?? Infinity);
    return [...rows].map((row) => [row, distances[row]]);
}"""


@pytest.fixture(scope="module")
def ort():
    """ONNX Runtime Web, got once by the code that users run."""
    try:
        return site.runtime(ROOT / "cache")
    except UserError as error:
        pytest.skip(f"no ONNX Runtime Web: {error}")


@pytest.fixture(scope="module")
def made(tmp_path_factory, ort):
    """(folder of a site, its index, its student)"""
    folder = tmp_path_factory.mktemp("site")
    path, student = write_index(folder, 300)
    with Index(path) as index, pytest.MonkeyPatch.context() as patch:
        patch.setattr(site, "GROUP", 128)  # several files of each kind
        patch.setattr(site, "SHARD", 32)
        site.write_site(index, student, folder / "site", ort)
    return folder / "site", path, student


class Host(SimpleHTTPRequestHandler):
    """A plain host of files, which notes what it is asked for; it gives parts of them if it is told to."""

    asked: list

    def do_GET(self):
        wanted = self.headers.get("Range") if getattr(self.server, "parts", False) else None
        self.asked.append(f"{self.path} {wanted}" if wanted else self.path)
        if not wanted:
            return super().do_GET()
        start, end = map(int, wanted.removeprefix("bytes=").split("-"))
        content = Path(self.translate_path(self.path)).read_bytes()[start : end + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def host(made) -> Iterator[tuple[str, list, ThreadingHTTPServer]]:
    asked: list = []
    handler = type("Own", (Host,), {"asked": asked})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=made[0])) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", asked, server
        server.shutdown()
        thread.join(10)


@pytest.fixture
def page(chromium, host):
    with opened(chromium, host[0]) as page:
        yield page


def row_of(hits: list) -> list[tuple[str, int]]:
    return [(hit.content, hit.distance) for hit in hits]


# What the browser finds


def test_the_browser_finds_what_the_index_finds(page, made, tmp_path):
    picture = tmp_path / "mine.png"
    draw(1000, (400, 300)).save(picture)
    drop(page, picture)
    expect(page.locator("#status")).to_have_text("The 100 most alike of 300 pictures")
    with Index(made[1]) as index:
        code = made[2].code(np.asarray(draw(1000, (400, 300))))[None]
        assert shown(page)[:60] == row_of(index.search(code, 60)[0])
        page.locator("#details summary").click()
        page.fill("#k", "40")
        page.press("#k", "Enter")
        page.fill("#radius", "27")
        page.press("#radius", "Enter")
        page.select_option("#folder", "b")
        expect(page.locator("#status")).to_contain_text("of 200 pictures")
        folder = str(made[1].parent / "pictures/b")
        hits = index.search(code, 40, 27, Filters(folder=folder))[0]
        assert len(hits) > 0 and shown(page) == row_of(hits)
        looks = [look_at(draw(1000, (400, 300)))]
        answer = answers(index, [("mine.png", code[0], 1.0)], 40, 27, Filters(folder=folder), looks=looks)[0]
    by_page = page.evaluate(
        """async (bytes) => (await import("./page/browser.js")).call("search",
            { file: new File([new Uint8Array(bytes)], "mine.png"), k: 40, radius: 27, folder: "b" })""",
        list(picture.read_bytes()),
    )
    assert by_page.keys() | {"index", "generation"} == answer.keys() and by_page["searched"] == answer["searched"]
    for key in ("rank", "distance", "id", "taken"):
        assert [r[key] for r in by_page["results"]] == [r[key] for r in answer["results"]]
    pictures = made[1].parent / "pictures"
    assert [str(pictures / r["path"]) for r in by_page["results"]] == [r["path"] for r in answer["results"]]


def test_browsing_by_date_and_folder(page, made):
    with Index(made[1]) as index:
        count, newest = index.newest_first(Filters(folder=str(made[1].parent / "pictures/b")), 0, 200)
    expect(page.locator("#status")).to_have_text("300 pictures, the newest first")
    page.select_option("#folder", "b")
    expect(page.locator("#status")).to_have_text(f"{count} pictures, the newest first")
    page.locator("#end").scroll_into_view_if_needed()
    expect(page.locator(".hit")).to_have_count(120)
    ids = page.locator(".hit").evaluate_all("(all) => all.map((one) => one.dataset.id)")
    assert ids == [one.digest[:16] for one in newest[:120]]
    page.locator(".hit button").first.click()
    expect(page.locator("#where")).to_contain_text("b")
    page.keyboard.press("Escape")
    page.fill("#before", "2020-02-03")
    expect(page.locator("#status")).to_have_text("No picture is of that folder and those days.")


def test_clicks_pastes_scrolling_and_the_way_back(page, host):
    find_alike(page, 3)
    expect(page.locator(".hit[data-distance='0']").first).to_be_visible()
    first = page.url
    expect(page.locator(".hit")).to_have_count(60)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".hit")).to_have_count(100)
    expect(page.locator(".hit img.there").first).to_be_visible()
    paste(page, as_bytes(draw(5)))
    expect(page.locator("#hint")).to_have_text("your picture")
    page.go_back()
    expect(page).to_have_url(first)
    expect(page.locator("#hint")).to_have_text("from the index")
    expect(page.locator("body.busy")).to_have_count(0)  # else the answer may take the tiles away
    assert page.locator("a[href*='original/']").count() == 0  # which a site does not have
    page.keyboard.press("Home")
    tiles = page.locator(".hit button")
    tiles.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator("#alike").press("Enter")
    expect(page).not_to_have_url(first)
    expect(tiles.first).to_be_focused()


def test_what_is_wrong_is_said(page, host, tmp_path):
    for name, content, words in (
        ("notes.txt", b"hello", "no picture (text/plain)"),
        ("notes.png", b"hello", "notes.png: not a readable image (none of JPEG"),
        ("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "not a readable image"),
        ("broken.png", as_bytes(draw(1))[:300], "damaged"),
        ("broken.jpg", as_bytes(draw(1), "JPEG")[:400], "damaged"),
        ("wide.png", as_bytes(draw(1).convert("1").resize((9000, 9000))), "megapixels"),
        ("strip.png", as_bytes(draw(1).resize((1, 900))), "strip"),
        ("scan.tif", as_bytes(draw(1), "TIFF"), "can't read"),
        ("empty.png", b"", "empty"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#choose", tmp_path / name)
        expect(page.locator("#error")).to_contain_text(words)
    page.goto(f"{host[0]}?id=99999")
    expect(page.locator("#error")).to_contain_text("no picture 99999")


def test_file_names_are_text(page, made, host):
    with Index(made[1]) as index:
        rows = index.records(index.codes()[0].tolist())
    marked = next(record for record in rows if record.path.endswith(MARKUP))
    page.goto(f"{host[0]}?id={marked.digest[:16]}")
    expect(page.locator("#title")).to_have_text(MARKUP)
    assert page.locator("img[src='x']").count() == 0


def test_a_phone(chromium, host):
    with opened(chromium, host[0], **PHONE) as phone:
        phone.locator(".hit button").nth(4).tap()
        phone.locator("#alike").tap()
        expect(phone.locator(".hit[data-distance='0']").first).to_be_visible()
        assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.fixture(scope="module")
def twice(tmp_path_factory, ort) -> Iterator[str]:
    """A site of twelve pictures, one of them there twice."""
    folder = tmp_path_factory.mktemp("twice")
    path, student = write_index(folder, 12)
    shutil.copyfile(folder / "pictures/b/picture0004.jpg", folder / "pictures/a/copy.jpg")
    with Index(path, write=True) as index:
        adding.add(index, student, [folder / "pictures"])
        site.write_site(index, student, folder / "site", ort)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everybody_can_use_it_at_any_size(chromium, twice, width, height):
    how = {"viewport": {"width": width, "height": height}, "reduced_motion": "reduce"}
    with opened(chromium, twice, **how, service_workers="block") as page:
        everybody_can_use(page)


def test_duplicates_are_those_of_the_server(chromium, twice, made, ort, tmp_path, monkeypatch):
    with opened(chromium, twice) as page:
        page.locator("#copies").click()
        expect(page.locator(".heading")).to_have_text("2 of the same bytes; keep the first (the others take 2 kB)")
        titles = page.locator(".hit button").evaluate_all("(all) => all.map((one) => one.title)")
        assert sorted(titles) == ["a/copy.jpg", "b/picture0004.jpg"]
        expect(page.locator(".hit img.there")).to_have_count(2)
    monkeypatch.setattr(site, "COMPARED", 10)  # of a larger index they are not there
    with Index(made[1]) as index:
        assert not site.write_site(index, made[2], tmp_path / "site", ort)["duplicates"]
    assert not list(tmp_path.glob("site/data/*/duplicates.json"))


def test_it_works_without_a_network_after_the_first_load(page, host):
    asked = host[1]
    page.locator("#keep").click()
    expect(page.locator("html")).to_have_attribute("data-offline", "yes", timeout=20_000)
    page.context.set_offline(True)
    asked.clear()
    page.reload()
    page.wait_for_selector("body[data-state=start]")
    find_alike(page, 7)
    expect(page.locator(".hit[data-distance='0']").first).to_be_visible()
    expect(page.locator(".hit img.there").nth(12)).to_be_visible()
    page.set_input_files("#choose", files=[{"name": "a.png", "mimeType": "image/png", "buffer": as_bytes(draw(1))}])
    expect(page.locator("#hint")).to_have_text("your picture")
    expect(page.locator(".grade").first).to_be_visible()
    assert set(asked) <= {"/sw.js"}  # the browser itself, which Playwright leaves online, may look for a newer worker


def test_few_requests_and_nothing_from_elsewhere(chromium, host, made):
    address, asked, _ = host
    with chromium.new_context(service_workers="block") as context:
        page = context.new_page()
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
        page.goto(address)
        find_alike(page)
        expect(page.locator(".hit img.there").nth(12)).to_be_visible()
    data = [path for path in asked if path.startswith("/data/")]
    assert len(data) == len(set(data)) + 1 and len(asked) < 35  # the first thumbnail asks whether there are parts


def test_a_host_that_gives_parts_is_asked_for_them(chromium, host):
    address, asked, server = host
    server.parts = True
    with chromium.new_context(service_workers="block") as context:
        page = context.new_page()
        page.set_viewport_size({"width": 390, "height": 500})
        page.goto(address)
        expect(page.locator(".hit img.there").nth(2)).to_be_visible()
        few = page.locator(".hit img.there").count()
        thumbs = [path for path in asked if "thumbs" in path]
        assert few < 20 and len(thumbs) == few + 1 and all("bytes=" in path for path in thumbs)  # those in sight
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.locator(".hit img.there").nth(few)).to_be_visible()


def test_the_browser_looks_again_as_python_does(page, made):
    of = """async ([width, height, rgb]) => [...(await import("./page/pixels.js")).look({ width, height, rgb })]"""
    for size in ((64, 48), (31, 33), (200, 97)):
        image = draw(size[0], size)
        there = np.array(page.evaluate(of, [*size, np.asarray(image).ravel().tolist()]), np.uint8)
        assert np.bitwise_count(there ^ look_at(image)).sum() <= 2  # Pillow rounds gray
    edited = draw(30).resize((90, 70))
    page.set_input_files(
        "#choose", files=[{"name": "e.jpg", "mimeType": "", "buffer": as_bytes(edited, "JPEG", quality=50)}]
    )
    expect(page.locator(".hit", has_text="picture0030.jpg")).to_contain_text("likely the same")
    expect(page.locator(".grade.same")).to_have_count(1)


def test_a_browser_that_adds_noise_to_pixels_is_noticed(chromium, host):
    noise = """const read = OffscreenCanvasRenderingContext2D.prototype.getImageData;
        OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...where) {
            const found = read.apply(this, where);
            found.data[4] ^= 1;
            return found;
        };"""
    script = noise + (ROOT / "search/page/pixels.js").read_text()
    upload = {"name": "a.png", "mimeType": "image/png", "buffer": as_bytes(draw(1))}
    for noisy in (False, True):
        with chromium.new_context(service_workers="block") as context:
            if noisy:
                context.route("**/pixels.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
            page = context.new_page()
            page.goto(host[0])
            page.wait_for_selector("body[data-state=start]")
            page.set_input_files("#choose", files=[upload])
            expect(page.locator(".grade").first).to_be_visible()
            expect(page.locator("#note")).to_contain_text("privacy settings" if noisy else "")
            assert (page.locator("#note").inner_text() != "") == noisy
            page.go_back()
            expect(page.locator("#note")).to_have_text("")


def test_a_site_that_was_written_anew_is_noticed(chromium, made, ort, tmp_path):
    shutil.copytree(made[0], tmp_path / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/"
        with opened(chromium, address) as page:
            page.evaluate("navigator.serviceWorker.ready.then(() => 0)")
            find_alike(page)
            expect(page.locator(".hit[data-distance='0']").first).to_be_visible()
            before, title = page.url, page.locator("#title").inner_text()
            other, student = write_index(tmp_path / "other", 12)
            with Index(other) as index:
                for record in index.records(index.codes()[0].tolist()):
                    draw(int.from_bytes(os.urandom(3))).save(record.path)
            with Index(other, write=True) as index:
                adding.add(index, student, [other.parent / "pictures"])
                site.write_site(index, student, tmp_path / "site", ort)
            page.reload()  # as it is kept here
            expect(page.locator("#title")).to_have_text(title)
            newer = page.locator("#newer")
            expect(newer).to_contain_text("300 pictures of ")
            expect(newer).to_contain_text("newer there: reload")
            newer.locator("a").click()  # no tab needs to be closed
            expect(page.locator("#about")).to_contain_text("12 pictures")
            expect(page.locator("#error")).to_contain_text(
                "this site has no picture"
            )  # and shows no other in its place
            assert page.url == before and not newer.is_visible()
        server.shutdown()


# Codes and scans, bit for bit


def exif(turned: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x112] = turned
    return tags


def see_through(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (5, 5)).astype(np.uint8)).resize(image.size)
    )
    return image


def gray16(seed: int) -> bytes:
    return as_bytes(Image.fromarray(np.random.RandomState(seed).randint(0, 65536, (45, 61)).astype(np.uint16)))


def rgb16() -> bytes:
    """A PNG of 16 bits a channel, which Pillow reads and does not write."""
    rows = np.random.RandomState(0).randint(0, 65536, (20, 30, 3)).astype(">u2")

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 30, 20, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", data) + part(b"IEND", b"")


def files() -> dict[str, bytes]:
    image, few = draw(3, (91, 67)), draw(4, (61, 45)).quantize(16)
    made = {f"jpeg turned {turned}": as_bytes(image, "JPEG", exif=exif(turned)) for turned in range(1, 9)}
    made |= {
        f"webp turned {turned}": as_bytes(image, "WEBP", exif=exif(turned), lossless=True) for turned in range(1, 9)
    }
    made |= {f"png turned {turned}": as_bytes(image, "PNG", exif=exif(turned)) for turned in (3, 6)}
    made |= {f"jpeg subsampled {mode}": as_bytes(image, "JPEG", subsampling=mode, quality=70) for mode in (0, 1, 2)}
    made |= {f"png {mode}": as_bytes(image.convert(mode)) for mode in ("RGB", "L", "1", "P")}
    made |= {f"png {mode}": as_bytes(see_through(image).convert(mode)) for mode in ("RGBA", "LA")}
    made |= {f"bmp {mode}": as_bytes(image.convert(mode), "BMP") for mode in ("RGB", "L", "1")}
    sizes = np.random.RandomState(0).randint(8, 400, (57, 2)).tolist()
    made |= {f"jpeg of {w} x {h}": as_bytes(draw(w, (w, h)), "JPEG", quality=w % 60 + 40) for w, h in sizes}
    return made | {
        "jpeg gray": as_bytes(image.convert("L"), "JPEG"),
        "jpeg cmyk": as_bytes(image.convert("CMYK"), "JPEG"),
        "jpeg progressive": as_bytes(image, "JPEG", progressive=True),
        "jpeg with a profile": as_bytes(image, "JPEG", icc_profile=ImageCmsProfile(createProfile("sRGB")).tobytes()),
        "jpeg turned by XMP alone": as_bytes(image, "JPEG", xmp=b'<x tiff:Orientation="6"/>'),
        "png of 16 bits, gray": gray16(1),
        "png of 16 bits, rgb": rgb16(),
        "png palette, see-through": as_bytes(few, transparency=bytes(range(0, 256, 16))),
        "webp": as_bytes(image, "WEBP"),
        "webp see-through": as_bytes(see_through(image), "WEBP", lossless=True, exact=True),
        "gif": as_bytes(few, "GIF"),
        "gif see-through": as_bytes(few, "GIF", transparency=3),
        "tall": as_bytes(draw(5, (120, 2500)), "JPEG"),  # several bands
    }


def test_pixels_and_codes_are_those_of_python(page, made):
    for name, content in files().items():
        here = pixels_of(io.BytesIO(content), name, upright=True)
        text = base64.b64encode(content).decode()
        width, height, there = page.evaluate(PIXELS, text)
        pixels = np.frombuffer(base64.b64decode(there), np.uint8).reshape(height, width, 3)
        assert np.array_equal(pixels, here), name
        assert page.evaluate(HASH, text) == made[2].code(here).tolist(), name


def test_colours_are_those_of_python(page):
    """But for rounding: the browser converts profiles by its own library."""
    for name, content in corpus().items():
        if name.startswith(("JPEG", "PNG", "WebP")) and any(
            word in name for word in ("swapped", "linear", "gAMA of 1")
        ):
            here = pixels_of(io.BytesIO(content), name, upright=True).astype(int)
            width, height, there = page.evaluate(PIXELS, base64.b64encode(content).decode())
            apart = np.abs(np.frombuffer(base64.b64decode(there), np.uint8).reshape(height, width, 3) - here)
            assert apart.mean() < 0.5 and apart.max() <= 4, name


def test_interlaced_gray_of_16_bits_is_refused(page):
    content = bytearray(gray16(1))
    content[28] = 1
    with pytest.raises(Exception, match="save it without interlacing"):
        page.evaluate(PIXELS, base64.b64encode(content).decode())


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_scan_is_exact_with_ties_in_order(page, width):
    from retrieval.codes import hamming_topk

    draw_codes = np.random.RandomState(width)
    codes = draw_codes.randint(0, 4, (500, 4 * width)).astype(np.uint8)  # many ties
    query = codes[123]
    for k in (1, 7, 500):
        distances, rows = hamming_topk(query[None], codes, k)
        expected = list(map(list, zip(rows[0].tolist(), distances[0].tolist(), strict=True)))
        given = [query.tolist(), codes.ravel().tolist(), width, k]
        assert page.evaluate(NEAREST, [*given, None]) == expected
        assert page.evaluate(NEAREST, [*given, 3]) == [pair for pair in expected if pair[1] <= 3]


@pytest.mark.parametrize("bits", [12, 16, 40])
def test_codes_of_other_lengths(chromium, tmp_path, ort, bits):
    student = Exported(write_export(tmp_path / "student", bits))
    for seed in range(40):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        draw(seed).save(tmp_path / f"pictures/{seed:02}.png")
    with Index(tmp_path / "index", write=True) as index:
        adding.add(index, student, adding.checked([tmp_path / "pictures"]))
        site.write_site(index, student, tmp_path / "site", ort)
        with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "site")) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with opened(chromium, f"http://127.0.0.1:{server.server_address[1]}/") as page:
                page.set_input_files("#choose", tmp_path / "pictures/07.png")
                expect(page.locator(".hit")).to_have_count(40)
                assert shown(page) == row_of(index.search(index.code_of(8)[None], 40)[0])
            server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


# What is written


def contents(folder: Path) -> dict:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_state_takes_the_old_one_s_place(made, ort, tmp_path):
    shutil.copytree(made[0], tmp_path / "site")
    before = contents(tmp_path / "site")
    assert str(made[1].parent).encode() not in b"".join(before.values())  # nobody's folders
    with Index(made[1]) as index:
        site.write_site(index, made[2], tmp_path / "site", ort)
        after = contents(tmp_path / "site")
        assert after.keys() != before.keys() and len(after) <= 21  # files of the usual sizes
        site.write_site(index, made[2], tmp_path / "site", ort)
        assert contents(tmp_path / "site") == after  # the same index: the same bytes
    other, student = write_index(tmp_path / "other", 12)
    with Index(other) as index:
        info = site.write_site(index, student, tmp_path / "site", ort)
    after = contents(tmp_path / "site")
    states = {name.split("/")[1] for name in after if name.count("/") == 2 and name.startswith("data/")}
    assert states == {info["version"]} != {json.loads(before["data/info.json"])["version"]}
    assert info["version"].encode() in after["sw.js"] and b"/* FILES */" not in after["sw.js"]


def test_site_says_what_is_wrong_in_one_line(made, cli, tmp_path, monkeypatch):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    for words, part in (
        (["--out", taken], "something else"),
        (["--out", tmp_path / "new", "--ort", tmp_path / "empty"], "no ort.wasm"),
        (["--out", tmp_path / "new", "--student", tmp_path], "no export"),
    ):
        code, _ = cli("search", "site", "--index", made[1], *words)
        assert str(code).startswith("error: ") and part in code, code
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _ = cli("search", "site", "--index", made[1], "--out", tmp_path / "new", "--cache-dir", tmp_path / "cache")
    assert "no npm" in code and "--ort" in code
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"] and not (tmp_path / "new").exists()


def test_site_by_its_command_and_a_runtime_from_elsewhere(made, cli, tmp_path):
    out = tmp_path / "site"
    code, said = cli("search", "site", "--index", made[1], "--out", out, "--ort", "https://cdn.example/ort@1/dist/")
    assert code == 0 and "300 pictures" in said
    html = (out / "index.html").read_text()
    assert "connect-src 'self' https://cdn.example;" in html and not (out / "ort").exists()
    assert "https://cdn.example/ort@1/dist/ort.wasm.bundle.min.mjs" in (out / "sw.js").read_text()


# Other hosts


NGINX = """
pid {folder}/pid; error_log {folder}/log; daemon off; worker_processes 1;
events {{}}
http {{
    include /etc/nginx/mime.types; default_type application/octet-stream; access_log off;
    client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; client_max_body_size 40m;
    server {{
        listen 127.0.0.1:{port};
        location /site/ {{ alias {site}/; }}
        location /photos/ {{ proxy_pass {server}; }}
    }}
}}
"""


CADDY = """
{{
    admin off
    auto_https disable_redirects
    skip_install_trust
}}
https://localhost:{port} {{
    tls internal
    handle_path /site/* {{
        root * {site}
        file_server
    }}
    handle_path /photos/* {{
        reverse_proxy {server}
    }}
}}
"""
STOCK = {
    "nginx": (NGINX, ("-c", "{conf}", "-p", "{folder}"), "http://127.0.0.1"),
    "caddy": (CADDY, ("run", "--config", "{conf}", "--adapter", "caddyfile"), "https://localhost"),
}


@contextlib.contextmanager
def stock(name: str, folder: Path, site: Path, server: str = "http://127.0.0.1:9/") -> Iterator[str]:
    """A stock nginx or, by TLS, Caddy: the site below a prefix, and a server of ours below another."""
    if not (program := shutil.which(name) or shutil.which(f"/usr/sbin/{name}")):
        pytest.skip(f"no {name}: scripts/test.sh installs it for root; else apt install nginx-light caddy")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shutil.copytree(site, folder / "www")
    for path in (folder, *folder.parents):
        if path != Path("/") and path.stat().st_uid == os.getuid() and path != Path("/tmp"):
            path.chmod(path.stat().st_mode | 0o055)  # workers are of another user
    text, words, address = STOCK[name]
    server = server if name == "nginx" else server.rstrip("/")
    conf = folder / "conf"
    conf.write_text(text.format(folder=folder, port=port, site=folder / "www", server=server))
    words = [word.format(conf=conf, folder=folder) for word in words]
    said, own = folder / "said", {**os.environ, "HOME": str(folder)}
    with said.open("wb") as file, subprocess.Popen([program, *words], stderr=file, env=own) as process:
        try:
            for _ in range(100):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.1):
                    break
                assert process.poll() is None, said.read_text()
                time.sleep(0.1)
            yield f"{address}:{port}/"
        finally:
            process.terminate()


@pytest.mark.parametrize("name", STOCK)
def test_a_stock_host_serves_the_site_below_a_prefix(chromium, made, tmp_path, name):
    picture = tmp_path / "mine.png"
    draw(1000, (400, 300)).save(picture)
    with (
        stock(name, tmp_path / "n", made[0]) as address,
        opened(chromium, f"{address}site/", ignore_https_errors=True) as page,
    ):
        drop(page, picture)
        expect(page.locator("#status")).to_contain_text("100 most alike of 300 pictures")


@pytest.mark.parametrize("name", STOCK)
def test_a_server_behind_a_proxy_and_a_prefix(chromium, made, tmp_path, name):
    picture = tmp_path / "mine.png"
    draw(1000, (400, 300)).save(picture)
    with (
        Index(made[1]) as index,
        running(make_app(index, made[2])) as server,
        stock(name, tmp_path / "n", made[0], server) as address,
        opened(chromium, f"{address}photos/", ignore_https_errors=True) as page,
    ):
        drop(page, picture)
        expect(page.locator("#status")).to_contain_text("100 most alike of 300 pictures")


def test_opened_as_a_file_it_says_what_it_needs(chromium, made):
    page = chromium.new_page()
    page.goto((made[0] / "index.html").as_uri())
    expect(page.locator("#silent")).to_be_visible(timeout=10_000)
    expect(page.locator("#silent")).to_contain_text("a web server")
    page.close()


def test_what_the_browser_cannot_decode_is_said_in_a_persons_words(page, tmp_path):
    (tmp_path / "IMG_1.heic").write_bytes(b"\0\0\0\x1cftypheic" + bytes(100))
    drop(page, tmp_path / "IMG_1.heic")
    expect(page.locator("#error")).to_contain_text("Most Compatible")


def test_a_first_writing_that_was_killed_can_be_repeated(made, ort, tmp_path):
    (tmp_path / "out" / "data" / f"{ASIDE}x" / "state").mkdir(parents=True)
    site.check_out(tmp_path / "out")
    (tmp_path / "out" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else than a site"):
        site.check_out(tmp_path / "out")
