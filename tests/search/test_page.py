"""The server behind the page, asked as any program may ask it; and the page in a real browser."""

import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date, timedelta
from io import BytesIO
from pathlib import Path
from unittest.mock import Mock

import httpx
import numpy as np
import pytest
from conftest import ROOT, command_line
from exports import write_export
from PIL import Image
from playwright.sync_api import expect
from small_search import (
    MARKUP,
    PHONE,
    SIZES,
    add,
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
from starlette.testclient import TestClient
from test_decode import content as encoded
from test_decode import turned

sys.path.insert(0, str(ROOT / "benchmarks"))


from search_page import mutated

from models.exported import Exported
from search import guard, server
from search.index import Filters, Index
from search.server import listen, make_app
from utils.errors import UserError

HERE = "http://127.0.0.1:8000"
GRADES = """[...document.querySelectorAll(".hit")].map((e) =>
    [Number(e.dataset.distance), e.querySelector(".grade").textContent])"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_index(tmp_path_factory.mktemp("page"))


@pytest.fixture
def index(made):
    with Index(made[0]) as opened:
        yield opened


@pytest.fixture
def client(index, made):
    return TestClient(make_app(index, made[1]), HERE, raise_server_exceptions=False)


def ask(client, content: bytes | None = None, name="x.png", headers=None, **form):
    files = None if content is None else {"file": (name, content)}
    return client.post("/api/search", data=form, files=files, headers=headers)


def content_of(index, row: int = 0) -> str:
    """What addresses name a picture by."""
    return index.record(index.codes()[0][row].item()).digest[:16]


def refused(response, *statuses: int) -> str:
    """The reason, which every refusal has, and only that."""
    assert response.status_code in statuses, response.text
    assert list(response.json()) == ["error"] and response.json()["error"]
    return response.json()["error"]


# What is answered


def test_answers_are_those_of_the_index(client, index, made):
    picture = draw(7, (333, 211))
    code = made[1].code(np.asarray(picture))[None]
    for form, where in (({}, Filters()), ({"folder": str(made[0].parent / "pictures/b")}, None)):
        where = where or Filters(folder=form["folder"])
        answer = ask(client, as_bytes(picture), k=30, radius=28, **form).json()
        expected = index.search(code, 30, 28, where)[0]
        assert answer["query"] == "x.png" and answer["hash_ms"] > 0 and answer["search_ms"] > 0
        assert answer["searched"] == (60 if form else 90) and len(expected) > 3
        assert answer["results"] == [
            {"rank": rank, "distance": hit.distance, "path": hit.path, "id": hit.content}
            | {"bytes": Path(hit.path).stat().st_size, "taken": hit.taken}
            for rank, hit in enumerate(expected, 1)
        ]


def test_a_result_finds_itself_and_new_pictures_are_found_at_once(client, index, made, tmp_path):
    some = index.record(index.codes()[0][40].item())
    answer = ask(client, id=some.digest[:16], k=5).json()
    assert answer["results"][0]["distance"] == 0 and answer["hash_ms"] == 0
    assert answer["query"] == some.path
    path = tmp_path / "new.png"
    draw(12345).save(path)
    with Index(made[0], write=True) as writer:
        added = add(writer, made[1], path)
        content = writer.record(added).digest[:16]
        assert ask(client, path.read_bytes(), k=1).json()["results"][0]["id"] == content
        assert client.get(f"/thumbnail/{content}").status_code == 200
        assert client.get("/api/info").json()["pictures"] == 91
        writer.remove([added])
    assert ask(client, path.read_bytes(), k=1).json()["results"][0]["id"] != content
    refused(client.get(f"/thumbnail/{content}"), 404)


def test_names_of_any_bytes_are_answered(client, made, tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xfe.png")
    draw(777).save(path)
    with Index(made[0], write=True) as writer:
        added = add(writer, made[1], path)
        try:
            assert ask(client, path.read_bytes(), k=1).json()["results"][0]["path"] == str(path)
            content = writer.record(added).digest[:16]
            assert client.get(f"/original/{content}").content == path.read_bytes()
            path.unlink()
            refused(client.get(f"/original/{content}"), 410)
        finally:
            writer.remove([added])


def test_info_says_what_is_searched(client, index, made):
    info = client.get("/api/info").json()
    assert (info["pictures"], info["bits"], info["problem"]) == (90, 64, None)
    assert info["folders"] == index.folders() and len(info["folders"]) == 3
    assert info["student"]["model_sha256"] == made[1].hash


def test_thumbnails_and_originals(client, index):
    for picture in index.codes()[0][:3].tolist():
        content = index.record(picture).digest[:16]
        small = client.get(f"/thumbnail/{content}")
        assert small.content == index.thumbnail(picture) and small.headers["content-type"] == "image/jpeg"
        again = client.get(f"/thumbnail/{content}", headers={"If-None-Match": small.headers["etag"]})
        assert again.status_code == 304 and not again.content
        whole = client.get(f"/original/{content}")
        assert whole.content == Path(index.record(picture).path).read_bytes()
        assert whole.headers["content-type"] == "image/jpeg" and "sandbox" in whole.headers["content-security-policy"]


def test_an_original_that_changed_or_is_gone_is_refused(made, tmp_path):
    path, student = write_index(tmp_path, 6)
    with Index(path) as index:
        client = TestClient(make_app(index, student), HERE)
        changed, swapped, gone, pipe, link = index.records(index.codes()[0][:5].tolist())
        Path(changed.path).write_bytes(b"x" + Path(changed.path).read_bytes())
        Path(swapped.path).write_bytes(b"x" * swapped.size)  # of the same size and time
        os.utime(swapped.path, ns=(swapped.mtime_ns, swapped.mtime_ns))
        for one in (gone, pipe, link):
            Path(one.path).unlink()
        os.mkfifo(pipe.path)
        Path(link.path).symlink_to("/etc/passwd")
        for one, status in ((changed, 409), (swapped, 409), (gone, 410), (pipe, 409), (link, 409)):
            for what in ("original", "preview"):
                assert one.path in refused(client.get(f"/{what}/{one.digest[:16]}"), status)
            assert client.get(f"/thumbnail/{one.digest[:16]}").status_code == 200


def test_what_browsers_cannot_show_is_previewed(chromium, tmp_path, monkeypatch):
    path, student = write_index(tmp_path, 6)
    heic = tmp_path / "pictures" / "IMG_1.HEIC"
    heic.write_bytes(encoded("HEIF", draw(77, (2000, 1500)), exif=turned(6)))
    with Index(path, write=True) as writer:
        add(writer, student, heic)
    with Index(path) as index, running(make_app(index, student)) as address:
        record = index.record(index.codes()[0][-1].item())
        client = TestClient(make_app(index, student), HERE)
        answer = client.get(f"/preview/{record.digest[:16]}")
        shown = Image.open(BytesIO(answer.content))
        assert (shown.format, shown.size, answer.headers["content-type"]) == ("JPEG", (750, 1000), "image/jpeg")
        again = client.get(f"/preview/{record.digest[:16]}", headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304 and not again.content
        with opened(chromium, address) as page:
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            page.locator(f".hit[data-id='{record.digest[:16]}'] button").click()
            expect(page.locator("#large")).to_have_attribute("src", re.compile("preview/"))
            assert page.locator("#large").evaluate("p => p.naturalWidth") == 750
            assert not [url for url in asked if "original/" in url]
        monkeypatch.setattr(server, "MAX_PIXELS", 1000)
        refused(client.get(f"/preview/{record.digest[:16]}"), 413)
        monkeypatch.setattr(server, "SECONDS", 0.2)
        monkeypatch.setattr(server, "preview_of", lambda record: time.sleep(1))
        assert "busy with other previews" in refused(client.get(f"/preview/{record.digest[:16]}"), 503)


# What is refused


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 415, "empty"),
        (b"hello", 415, "not a readable image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not a readable image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a readable image"),
        (as_bytes(draw(1), "PPM"), 415, "not a readable image"),
        (as_bytes(draw(1), "JPEG")[:500], 415, "truncated"),
        (as_bytes(draw(1), "PNG")[:-40], 415, "x.png"),
        (as_bytes(draw(1).convert("1").resize((9000, 9000))), 413, "megapixels"),
        (as_bytes(draw(1).convert("1").resize((15_000, 15_000))), 413, "megapixels"),
        (as_bytes(draw(1).resize((1, 900))), 413, "strip"),
        (as_bytes(draw(1), "BMP") + bytes(guard.MAX_UPLOAD), 413, "mib"),
        (as_bytes(draw(1), "BMP") + bytes(guard.MAX_BODY), 413, "mib"),
    ],
)
def test_no_picture_and_one_too_large(client, content, status, words):
    assert words in refused(ask(client, content), status).lower()


def test_a_body_without_a_length_ends_at_the_limit(client):
    sent = 0

    def body():
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        for _ in range(4 * guard.MAX_BODY // 2**20):
            sent += 2**20
            yield bytes(2**20)

    response = client.post("/api/search", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert "MiB" in refused(response, 413)


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"id": 1, "k": 0},
        {"id": 1, "k": server.MAX_K + 1},
        {"id": 1, "k": "many"},
        {"id": 1, "radius": -1},
        {"id": 1, "folder": "x" * 5000},
        {"id": "x" * 5000},
        {"file": "not a file"},
    ],
)
def test_senseless_numbers(client, form):
    refused(ask(client, **form), 422)


def test_malformed_forms(client):
    kind = "multipart/form-data; boundary=x"
    for body, headers in (
        (b"", {}),
        (b"{", {"Content-Type": "application/json"}),
        (b"--y\r\n\r\n", {"Content-Type": kind}),
        (b"--x\r\n\r\nno name\r\n--x--", {"Content-Type": kind}),
        (b"x", {"Content-Type": "multipart/form-data"}),
        (b"k=3", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b'--x\r\nContent-Disposition: form-data; name="folder"\r\n\r\n' + b"y" * 20_000, {"Content-Type": kind}),
    ):
        refused(client.post("/api/search", content=body, headers=headers), 400, 422)
    assert "two" in refused(ask(client, as_bytes(draw(1)), id=1), 422)
    many = [("file", ("x.png", as_bytes(draw(1)))) for _ in range(3)]
    refused(client.post("/api/search", files=many), 400)


def test_unknown_pictures(client):
    for where in ("thumbnail", "preview", "original"):
        for picture in (1, "0" * 16, -1, 2**63, "x", "1.5", "%2e%2e", "a", "é" * 16, "x" * 5000):
            refused(client.get(f"/{where}/{picture}"), 404, 422)
    for picture in (1, -1, "0" * 16, "1; DROP TABLE pictures"):
        assert "has no picture" in refused(ask(client, id=picture), 404)


def test_an_unknown_folder_is_said(client, index):
    for answer in (ask(client, id=content_of(index), folder="/gone"), client.get("/api/pictures?folder=/gone")):
        assert "/gone: no picture of this index lies there" in refused(answer, 404)


def test_no_address_leads_to_a_file(made, index):
    """By http.client, since others tidy addresses before they send them."""
    tricks = [
        *("/page/../server.py", "/page/..%2fserver.py", "/page/%2e%2e/server.py", "/page//etc/passwd", "//etc/passwd"),
        *("/page/..\\server.py", "/page/page.js%00", "/../../etc/passwd", "/original/../../etc/passwd", "/page/"),
        *("/original//etc/passwd", "/original/1/../2", "/thumbnail/%2fetc%2fpasswd", "/index", "/.git/config"),
        *("http://evil.example/", "/page/page.js/", "/static/page.js", "/%", "/%ff", "/page/" + "a" * 3000),
    ]
    with running(make_app(index, made[1])) as address:
        for trick in tricks:
            link = http.client.HTTPConnection(address.split("/")[2], timeout=10)
            link.request("GET", trick)
            answer = link.getresponse()
            assert answer.status in (307, 400, 404, 405, 421, 422), (trick, answer.status)
            assert b"root:" not in answer.read()
            assert answer.status != 307 or answer.headers["location"].startswith(address.rstrip("/")), trick
            link.close()


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", ""])
def test_another_name_is_refused(client, host, index):
    """As a page does whose own name is pointed here."""
    for path in ("/", "/api/info", f"/thumbnail/{content_of(index)}", f"/original/{content_of(index)}", "/docs"):
        refused(client.get(path, headers={"Host": host}), 421)
    refused(ask(client, id=content_of(index), headers={"Host": host}), 421)


def test_names_that_are_ours(index, made):
    client = TestClient(make_app(index, made[1], ["photos.lan"]), HERE)
    for host in (
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "[::1]:8000",
        "192.168.1.7:80",
        "photos.lan",
        "Photos.LAN:80",
    ):
        assert client.get("/", headers={"Host": host}).status_code == 200, host


def test_pages_of_other_sites_may_not_ask(client, index):
    for headers in (
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ):
        refused(ask(client, id=content_of(index), headers=headers), 403)
    own = {"Origin": HERE, "Sec-Fetch-Site": "same-origin"}
    answer = ask(client, id=content_of(index), headers=own)
    assert answer.status_code == 200 and not any("access-control" in name for name in answer.headers)


def test_every_answer_has_the_headers(client, index):
    answers = [
        client.get(path)
        for path in ("/", "/docs", "/page/page.js", "/page/nothing", "/api/info", f"/thumbnail/{content_of(index)}")
    ]
    answers += [
        client.get(f"/original/{content_of(index)}"),
        client.get("/", headers={"Host": "evil.example"}),
        client.put("/"),
    ]
    answers += [ask(client), ask(client, b"x"), ask(client, bytes(guard.MAX_BODY + 1))]
    assert {answer.status_code for answer in answers} >= {200, 404, 405, 413, 415, 421, 422}
    for answer in answers:
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


def test_mutated_uploads_are_answered_with_a_reason(client):
    statuses = set()
    for name, content in mutated(200, seed=0):
        response = ask(client, content, name)
        statuses.add(response.status_code)
        if response.status_code != 200:  # a flipped bit may leave a picture
            refused(response, 413, 415)
    assert {200, 415} <= statuses
    assert ask(client, as_bytes(draw(1))).status_code == 200


# Many at once, long ones, other models


class Slow:
    """A student that hashes when it is told to."""

    def __init__(self, student: Exported):
        self.card, self.bits, self.student = student.card, student.bits, student
        self.begun, self.go = threading.Semaphore(0), threading.Event()

    def code(self, pixels):
        self.begun.release()
        assert self.go.wait(60)
        return self.student.code(pixels)


def test_more_at_once_than_the_limit_wait_and_the_rest_goes_on(index, made, monkeypatch):
    monkeypatch.setattr(guard, "ASKING", 2)
    slow, answers = Slow(made[1]), []
    with running(make_app(index, slow)) as address, httpx.Client(base_url=address, timeout=60) as client:

        def query() -> None:
            answers.append(client.post("/api/search", files={"file": ("x.png", as_bytes(draw(1)))}).status_code)

        threads = [threading.Thread(target=query) for _ in range(3)]
        for thread in threads[:2]:
            thread.start()
            assert slow.begun.acquire(timeout=60)
        threads[2].start()
        assert client.get(f"/thumbnail/{content_of(index)}").status_code == 200 and not slow.begun.acquire(timeout=0.2)
        monkeypatch.setattr(guard, "HELD", 100)
        busy = client.post("/api/search", data={"id": content_of(index)})
        assert "busy" in refused(busy, 503) and busy.headers["retry-after"]
        slow.go.set()
        for thread in threads:
            thread.join()
    assert answers == [200, 200, 200]


def test_slow_and_silent_clients_hold_no_place(index, made, monkeypatch):
    monkeypatch.setattr(guard, "ASKING", 1)
    monkeypatch.setattr(guard, "RECEIVING", 1)
    with running(make_app(index, made[1])) as address, httpx.Client(base_url=address, timeout=60) as client:
        silent = [http.client.HTTPConnection(address.split("/")[2]) for _ in range(8)]
        for connection in silent:
            connection.putrequest("POST", "/api/search")
            connection.putheader("Content-Length", "1000")
            connection.putheader("Content-Type", "application/x-www-form-urlencoded")
            connection.endheaders(b"i")
        assert client.post("/api/search", data={"id": content_of(index)}).status_code == 200
        assert [connection.getresponse().status for connection in silent] == [503] * 8


def test_small_queries_pass_by_large_ones(index, made, monkeypatch):
    monkeypatch.setattr(server, "LARGE", 100 * 100)
    slow, answers = Slow(made[1]), []
    with running(make_app(index, slow)) as address, httpx.Client(base_url=address, timeout=60) as client:

        def query(size: tuple[int, int]) -> int:
            return client.post("/api/search", files={"file": ("x.png", as_bytes(draw(1, size)))}).status_code

        threads = [threading.Thread(target=lambda: answers.append(query((200, 100)))) for _ in range(12)]
        for thread in threads:
            thread.start()
        assert slow.begun.acquire(timeout=60) and not slow.begun.acquire(timeout=0.5)  # one large one is at work
        small = threading.Thread(target=lambda: answers.append(query((50, 50))))
        small.start()
        assert slow.begun.acquire(timeout=60)  # and a small one beside it
        slow.go.set()
        for thread in (*threads, small):
            thread.join()
    assert answers == [200] * 13


def test_a_proxy_that_speaks_tls_may_stand_in_front(client, index, made):
    through = {"Origin": "https://photos.example.com", "Sec-Fetch-Site": "same-origin"}
    assert ask(client, id=content_of(index), headers=through).status_code == 200
    older = {"Origin": "https://photos.example.com"}
    assert "photos.example.com" in refused(ask(client, id=content_of(index), headers=older), 403)
    named = TestClient(make_app(index, made[1], ["photos.example.com"]), HERE)
    assert ask(named, id=content_of(index), headers=older).status_code == 200
    assert ask(named, id=content_of(index), headers={**older, "Host": "photos.example.com"}).status_code == 200
    refused(
        ask(named, id=content_of(index), headers={"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}),
        403,
    )


def test_head_ranges_and_what_has_just_been_removed(client, index, monkeypatch):
    for path in ("/", "/api/info", f"/thumbnail/{content_of(index)}", f"/original/{content_of(index)}"):
        head, whole = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"") and head.headers["content-length"] == str(
            len(whole.content)
        )
    whole = client.get(f"/original/{content_of(index)}").content
    part = client.get(f"/original/{content_of(index)}", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole[10:20])
    monkeypatch.setattr(index, "code_of", Mock(side_effect=KeyError(1)))  # between two calls
    assert "has been removed" in refused(ask(client, id=content_of(index)), 404)


def test_what_is_known_of_the_index_is_computed_once_a_state(client, index, monkeypatch):
    first = client.get("/api/info").json()
    assert first["index"] == index.identity and first["generation"] == index.generation
    monkeypatch.setattr(index, "search", Mock(side_effect=ZeroDivisionError))
    assert client.get("/api/info").json() == first


def test_what_takes_too_long_is_given_up(index, made, monkeypatch):
    monkeypatch.setattr(guard, "SECONDS", 0.1)
    slow = Slow(made[1])
    client = TestClient(make_app(index, slow), HERE)
    assert "longer" in refused(ask(client, as_bytes(draw(1))), 503)
    slow.go.set()
    monkeypatch.setattr(guard, "SECONDS", 60)
    assert ask(client, as_bytes(draw(1))).status_code == 200


def test_an_empty_index_and_a_model_of_another_kind(made, tmp_path):
    with Index(tmp_path / "new", write=True):
        pass
    with Index(tmp_path / "new") as empty:
        client = TestClient(make_app(empty, made[1]), HERE)
        assert "empty" in refused(ask(client, as_bytes(draw(1))), 409)
        info = client.get("/api/info").json()
        assert info["pictures"] == 0 and "empty" in info["problem"]
    other = Exported(write_export(tmp_path / "other", seed=1))
    with Index(made[0]) as index:
        client = TestClient(make_app(index, other), HERE)
        refused(ask(client, as_bytes(draw(1))), 409)
        assert client.get("/api/info").json()["problem"]


def test_an_index_that_fails_and_a_fault_of_ours_are_said(client, index, monkeypatch):
    for error, status, words in ((UserError("index: damaged"), 503, "damaged"), (ZeroDivisionError(), 500, "Zero")):
        monkeypatch.setattr(index, "search", Mock(side_effect=error))
        assert words in refused(ask(client, id=content_of(index)), status)


def test_a_query_writes_nothing(client, made, monkeypatch, tmp_path, index):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))  # a large upload would go there
    folder = made[0].parent

    def state() -> dict:
        return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if not p.name.endswith("-shm")}

    ask(client, id=content_of(index))
    before = state()
    large = as_bytes(draw(3, (1600, 1200)), "BMP")
    assert len(large) > 5_000_000
    assert ask(client, large).status_code == 200
    assert (
        ask(client, id=content_of(index, 1)).status_code == 200
        and client.get(f"/original/{content_of(index, 1)}").status_code == 200
    )
    refused(ask(client, b"x"), 415)
    assert state() == before and not (tmp_path / "nowhere").exists()


# The command


def test_serve_answers_as_query_does_and_ends_by_ctrl_c(made, command, tmp_path):
    picture = tmp_path / "asked.png"
    draw(5, (300, 200)).save(picture)
    words = command_line("search", "serve", "--index", made[0], "--port", 0)
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = process.stdout.readline()
        assert said.startswith("90 pictures on http://127.0.0.1:")
        address = next(word for word in said.split() if word.startswith("http"))
        with httpx.Client(base_url=address) as client:
            served = ask(client, picture.read_bytes(), "asked.png", k=7).json()
            info = client.get("/api/info").json()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out.strip(), err) == (0, "stopped", "")
    done = command("search", "query", "--index", made[0], picture, "-k", 7, "--json")
    (answer,) = json.loads(done.stdout)
    assert answer["results"] == served["results"] and answer["searched"] == served["searched"] == info["pictures"]
    assert answer.keys() == served.keys()


def test_serve_says_what_is_wrong_in_one_line(made, cli, tmp_path):
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        code, _ = cli("search", "serve", "--index", made[0], "--port", port)
        assert str(port) in code and "choose another" in code
    other = write_export(tmp_path / "other", seed=1)
    for words, part in (
        (["--index", tmp_path / "none"], "no such index"),
        (["--index", made[0], "--student", other], "hashed by"),
        (["--index", made[0], "--student", tmp_path], "no export there"),
        (["--index", made[0], "--host", "no.such.host.invalid"], "--host"),
        (["--index", made[0], "--port", 70000], "--port"),
    ):
        code, _ = cli("search", "serve", *words)
        assert str(code).startswith("error: ") and part in code, code


# The page in a browser


@pytest.fixture(scope="module")
def served(made):
    with Index(made[0]) as index, running(make_app(index, made[1])) as address:
        yield address


@pytest.fixture
def page(chromium, served):
    with opened(chromium, served) as page:
        yield page


@pytest.fixture
def phone(chromium, served):
    with opened(chromium, served, **PHONE) as page:
        yield page


def test_a_dropped_picture_is_searched_by(page, index, made, tmp_path):
    picture = tmp_path / "mine.png"
    draw(8).save(picture)
    drop(page, picture)
    expect(page.locator("#status")).to_have_text("The 90 most alike of 90 pictures")
    hits = index.search(made[1].code(np.asarray(draw(8)))[None], 100)[0]
    assert shown(page)[:20] == [(hit.content, hit.distance) for hit in hits[:20]]
    expect(page.locator("#title")).to_have_text("mine.png")
    assert page.locator("#picture").evaluate("p => p.naturalWidth") == 64  # the query beside its results


def test_pasted_and_chosen_pictures(page, tmp_path):
    picture = tmp_path / "mine.png"
    draw(8).save(picture)
    page.set_input_files("#choose", picture)
    expect(page.locator(".grade").first).to_be_visible()
    chosen = shown(page)
    page.go_back()
    expect(page.locator(".grade")).to_have_count(0)
    paste(page, picture.read_bytes())
    expect(page.locator(".grade").first).to_be_visible()
    assert shown(page) == chosen
    page.keyboard.press("Escape")
    paste(page, None)
    expect(page.locator("#error")).to_have_text("There is no picture on the clipboard.")


def test_a_result_is_a_question_and_back_is_the_way_back(page, served):
    find_alike(page, 5)
    expect(page.locator("#hint")).to_have_text("from the index")
    first = page.url
    assert shown(page)[0][1] == 0 and f"id={shown(page)[0][0]}" in first
    find_alike(page, 9)
    expect(page).not_to_have_url(first)
    assert shown(page)[0][1] == 0
    page.go_back()
    expect(page).to_have_url(first)
    page.go_back()
    expect(page).to_have_url(served)
    expect(page.locator("#status")).to_have_text("90 pictures, the newest first")
    page.goto(first)  # an address that was sent to somebody
    expect(page.locator(".hit[data-distance='0']").first).to_be_visible()


def test_the_original_opens(page, index):
    page.locator(".hit button").first.click()
    with page.context.expect_page() as other:
        page.locator("#open").click()
    assert other.value.locator("img").evaluate("p => p.naturalWidth") == 64


def test_all_pictures_by_date_and_folder(client, index, made):
    ids = index.codes()[0].tolist()
    newest = sorted(index.records(ids), key=lambda one: (-one.taken, -one.id))
    first, rest = (client.get("/api/pictures", params={"start": s, "n": 50}).json() for s in (0, 50))
    assert first["pictures"] == 90 and first["generation"] == index.generation
    assert [one["path"] for one in first["results"] + rest["results"]] == [one.path for one in newest]
    folder = str(made[0].parent / "pictures/b")
    assert client.get("/api/pictures", params={"folder": folder}).json()["pictures"] == 60
    today = date.today()
    for after, n in ((today, 90), (today + timedelta(2), 0)):
        assert client.get("/api/pictures", params={"after": after}).json()["pictures"] == n
        assert ask(client, id=content_of(index), after=str(after)).json()["searched"] == n
    refused(client.get("/api/pictures?before=yesterday"), 422)


def test_browsing_by_date_and_folder(chromium, tmp_path):
    path, student = write_index(tmp_path, 150)
    files = sorted((tmp_path / "pictures").rglob("*.jpg"))
    for day, file in enumerate(files):
        os.utime(file, (1.7e9 + 86400 * day, 1.7e9 + 86400 * day))  # from 14 November 2023 on
    with Index(path, write=True) as writer:
        writer.remove(writer.codes()[0].tolist())
        add(writer, student, tmp_path / "pictures")
    with Index(path) as index, running(make_app(index, student)) as address, opened(chromium, address) as page:
        expect(page.locator("#status")).to_have_text("150 pictures, the newest first")
        expect(page.locator(".day").first).to_have_text("11 Apr 2024")
        expect(page.locator(".hit")).to_have_count(60)
        page.locator(".hit").last.scroll_into_view_if_needed()
        expect(page.locator(".hit")).to_have_count(120)
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        expect(page.locator(".hit")).to_have_count(150)
        expect(page.locator("#end")).to_have_text("That is all.")
        page.fill("#after", "2023-11-16")
        page.fill("#before", "2023-11-20")
        expect(page.locator("#status")).to_have_text("5 pictures, the newest first")
        assert "after=2023-11-16" in page.url and "before=2023-11-20" in page.url
        find_alike(page)
        expect(page.locator("#status")).to_have_text("The 5 most alike of 5 pictures")
        page.locator(".hit button").first.click()
        page.locator("#folder-of").click()
        expect(page.locator("#status")).to_have_text("50 pictures, the newest first")
        expect(page.locator("#folder")).to_have_value(str(tmp_path / "pictures/a"))
        page.go_back()
        expect(page.locator("#status")).to_have_text("The 5 most alike of 5 pictures")
        page.locator("#home").click()
        expect(page.locator("#status")).to_have_text("150 pictures, the newest first")


def test_a_tile_opens_a_viewer(page, index):
    tiles = page.locator(".hit button")
    tiles.nth(2).click()
    file, large = page.locator("#file"), page.locator("#large")
    expect(file).to_have_text(Path(tiles.nth(2).get_attribute("title")).name)
    expect(large).to_have_attribute("src", re.compile("original/"))
    assert large.evaluate("p => p.naturalWidth") == 64
    page.locator("#view summary").click()
    record = index.find(page.locator(".hit").nth(2).get_attribute("data-id"))
    for words in (record.path, "kB", str(time.localtime().tm_year)):
        expect(page.locator("#facts")).to_contain_text(words)
    page.keyboard.press("ArrowRight")
    expect(file).to_have_text(Path(tiles.nth(3).get_attribute("title")).name)
    for _ in range(5):
        page.keyboard.press("ArrowLeft")
    expect(file).to_have_text(Path(tiles.first.get_attribute("title")).name)
    expect(page.locator("#previous")).to_have_attribute("aria-disabled", "true")
    page.locator("#next").click()
    page.keyboard.press("Escape")
    expect(page.locator("#view")).not_to_be_visible()
    expect(tiles.nth(1)).to_be_focused()
    page.route("**/original/*", lambda route: route.fulfill(body=b"HEIC, say", content_type="image/heic"))
    tiles.nth(9).click()
    expect(large).to_have_attribute("src", re.compile("preview/"))
    page.route("**/preview/*", lambda route: route.fulfill(status=413))
    page.keyboard.press("ArrowRight")
    expect(large).to_have_attribute("src", re.compile("thumbnail/"))
    page.locator("#alike").click()
    expect(page.locator("#hint")).to_have_text("from the index")
    tiles.nth(1).click()
    expect(page.locator("#where")).to_contain_text("alike")
    expect(page.locator("#facts")).to_contain_text("of 64 bits differ")


def test_the_grid_fills_as_it_is_scrolled(page):
    page.set_viewport_size({"width": 500, "height": 400})
    find_alike(page)
    shown(page)
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    expect(page.locator(".hit")).to_have_count(90)
    expect(page.locator("#end")).to_have_text("That is all.")
    assert [distance for _, distance in shown(page)] == sorted(distance for _, distance in shown(page))
    assert page.locator(".hit img.there").count() > 0


def test_k_radius_and_folder(page, index):
    page.goto(f"{page.url}?id={content_of(index)}")  # in the first folder
    expect(page.locator(".hit")).to_have_count(60)
    page.locator("#details summary").click()
    expect(page.locator("#timing")).to_contain_text("its code was known")
    page.fill("#k", "7")
    page.press("#k", "Enter")
    expect(page.locator(".hit")).to_have_count(7)
    page.select_option("#folder", index.folders()[1])  # b, and b/deep below it
    expect(page.locator("#status")).to_contain_text("of 60 pictures")
    assert "folder=" in page.url and "k=7" in page.url
    page.fill("#radius", "0")
    page.press("#radius", "Enter")
    expect(page.locator("#status")).to_contain_text("Nothing that near among 60 pictures")
    page.select_option("#folder", "")
    expect(page.locator(".hit")).to_have_count(1)
    page.fill("#k", "0")
    page.press("#k", "Enter")
    expect(page.locator("#error")).to_contain_text("Nearest")


def test_what_is_wrong_is_said(page, served, tmp_path):
    for name, content, words in (
        ("notes.txt", b"hello", "no picture (text/plain)"),
        ("broken.png", as_bytes(draw(1))[:300], "broken.png"),
        ("empty.png", b"", "empty"),
        ("large.bmp", as_bytes(draw(1), "BMP") + bytes(guard.MAX_UPLOAD), "too large; at most 32"),
        ("wide.png", as_bytes(draw(1).convert("1").resize((9000, 9000))), "megapixels"),
    ):
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#choose", tmp_path / name)
        expect(page.locator("#error")).to_contain_text(words)
    page.goto(f"{served}?folder=/gone")
    expect(page.locator("#error")).to_contain_text("/gone: no picture lies there any more; all folders are shown")
    expect(page.locator(".hit").first).to_be_visible()
    page.goto(f"{served}?id=99999")
    expect(page.locator("#error")).to_contain_text("no picture 99999")
    expect(page.locator(".hit").first).to_be_visible()
    page.route("**/api/search", lambda route: route.abort())
    page.set_input_files("#choose", files=[{"name": "a.png", "mimeType": "image/png", "buffer": as_bytes(draw(1))}])
    expect(page.locator("#error")).to_contain_text("does not answer")


def test_an_error_leaves_question_and_results_where_they_are(page):
    find_alike(page)
    expect(page.locator(".grade").first).to_be_visible()
    before = page.url, page.locator("#title").inner_text(), page.locator("#status").inner_text(), shown(page)
    page.set_input_files("#choose", files=[{"name": "no.png", "mimeType": "image/png", "buffer": b"no picture"}])
    expect(page.locator("#error")).to_contain_text("no.png")
    expect(page.locator("#picture")).to_be_visible()
    assert before == (page.url, page.locator("#title").inner_text(), page.locator("#status").inner_text(), shown(page))


def test_a_person_s_words_come_first(page, made):
    expect(page.locator("h1")).to_have_text("Which pictures look like yours?")
    page.route("**/thumbnail/*", lambda route: route.abort())
    find_alike(page)
    expect(page.locator(".grade").first).to_be_visible()
    for bits, words in ((0, "likely the same"), (8, "very alike"), (16, "alike"), (64, "loosely alike")):
        for distance, grade in page.evaluate(GRADES):
            if distance == bits or (distance and bits / 2 < distance < bits):
                assert grade in (words, "likely the same"), distance
    tile = page.locator(".hit", has_text="picture").first
    expect(tile.locator(".place")).to_have_text(re.compile("^(a|b|b/deep)$"))
    expect(tile.locator(".day")).to_contain_text(str(time.localtime().tm_year))
    expect(tile.locator("button")).to_contain_text("no preview")
    seen = page.locator("body").inner_text()
    assert not any(word in seen for word in ("bits", "hashed", "code", " ms")), seen


def test_whole_pictures_are_shown_whatever_their_shape(page):
    assert page.locator(".hit img").first.evaluate("(p) => getComputedStyle(p).objectFit") == "contain"


def test_what_it_needs_is_said_without_scripts(chromium, served):
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(served)
        expect(page.locator(".noscript")).to_contain_text("needs JavaScript")


def test_an_empty_index_is_said(chromium, made, tmp_path):
    path, student = write_index(tmp_path, 6)
    with Index(path, write=True) as writer:
        writer.remove(writer.codes()[0].tolist())
    with Index(path) as empty, running(make_app(empty, student)) as address, opened(chromium, address) as page:
        expect(page.locator("#error")).to_contain_text("the index is empty; add pictures")


def test_the_keyboard_is_enough(page):
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('.hit') !== null"):
            break
    tiles = page.locator(".hit button")
    expect(tiles.first).to_be_focused()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    columns = page.evaluate(
        "getComputedStyle(document.querySelector('#results')).gridTemplateColumns.split(' ').length"
    )
    for key, at in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0), ("End", 59)):
        page.keyboard.press(key)
        expect(tiles.nth(at)).to_be_focused()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    name = tiles.nth(1).get_attribute("title")
    page.keyboard.press("Enter")
    expect(page.locator("#file")).to_have_text(Path(name).name)
    page.locator("#alike").focus()
    page.keyboard.press("Enter")
    expect(page.locator(".hit[data-distance='0']").first).to_be_visible()
    expect(tiles.first).to_be_focused()
    nameless = page.evaluate("""[...document.querySelectorAll("button, input, select, a")].filter((e) =>
        !(e.ariaLabel || e.textContent.trim() || e.labels?.[0]?.textContent.trim())).length""")
    assert nameless == 0


def test_a_phone(phone):
    expect(phone.locator(".hit")).to_have_count(60)
    expect(phone.locator("label.camera")).to_be_visible()
    assert phone.get_attribute("#photograph", "capture") == "environment"
    phone.locator(".hit button").nth(4).tap()
    phone.locator("#alike").tap()
    expect(phone.locator(".hit[data-distance='0']").first).to_be_visible()
    assert phone.evaluate("document.documentElement.scrollWidth <= innerWidth")  # nothing sticks out
    small = """[...document.querySelectorAll("label.button, fieldset input, fieldset select, .hit button")].filter(
        (e) => e.checkVisibility() && e.getBoundingClientRect().height < 40).length"""
    assert phone.evaluate(small) == 0
    phone.set_input_files(
        "#photograph", files=[{"name": "p.jpg", "mimeType": "image/jpeg", "buffer": as_bytes(draw(2))}]
    )
    expect(phone.locator("#title")).to_have_text("p.jpg")


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_everybody_can_use_it_at_any_size(chromium, served, client, index, width, height):
    pictures = client.get("/api/pictures?n=3").json()["results"]
    groups = [
        [{**one, "kind": kind} for one, kind in zip(pictures, ("same bytes", "same bytes", "near copy"), strict=True)]
    ]
    for scheme in ("light", "dark"):
        how = {"viewport": {"width": width, "height": height}, "color_scheme": scheme, "reduced_motion": "reduce"}
        with opened(chromium, served, **how) as page:
            page.route("**/api/duplicates", lambda route: route.fulfill(json=groups))
            everybody_can_use(page)
            page.locator("#home").click()
            find_alike(page)
            shown(page)
            page.locator("#filters").evaluate("(one) => (one.open = matchMedia('(min-width: 60rem)').matches)")
            assert page.locator("#ask").bounding_box()["height"] < height / 2
            small = "(all) => all.filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 40).length"
            assert page.locator("a:not(.skip), button, select, summary, label.button").evaluate_all(small) == 0


def test_dark_and_light(chromium, served):
    grounds = set()
    for scheme in ("dark", "light"):
        with opened(chromium, served, color_scheme=scheme) as page:
            colours = page.evaluate("""[document.body, document.querySelector("#hint")].flatMap((e) =>
                [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])""")
            lights = [sum(map(int, c[4:-1].split(", "))) for c in (colours[0], colours[1], colours[3])]
            assert (lights[0] < 200) == (scheme == "dark") and min(abs(lights[0] - x) for x in lights[1:]) > 200
            grounds.add(colours[0])
    assert len(grounds) == 2


def test_file_names_are_text(page, index):
    marked = next(record for record in index.records(index.codes()[0].tolist()) if record.path.endswith(MARKUP))
    page.goto(f"{page.url}?id={marked.digest[:16]}")
    expect(page.locator("#title")).to_have_text(MARKUP)
    expect(page.locator(".caption span").first).to_have_text(MARKUP)
    assert page.locator("img[src='x']").count() == 0
    name = MARKUP.replace('"', "")  # which a form escapes
    page.set_input_files("#choose", files=[{"name": name, "mimeType": "image/png", "buffer": b"no picture"}])
    expect(page.locator("#error")).to_contain_text(name)
    assert page.locator("img[src='x']").count() == 0


def test_the_api_s_page_needs_nothing_from_elsewhere(page, served):
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(served) else route.abort())
    page.goto(f"{served}docs")
    expect(page.locator("h2 code").first).to_have_text("/api/search")
    text = page.locator("#docs").inner_text()
    assert all(
        word in text
        for word in ("/api/info", "/thumbnail/{id}", "/preview/{id}", "/original/{id}", "radius", "search_ms", "curl")
    )
    expect(page.locator("h2 code")).to_have_count(len(httpx.get(f"{served}openapi.json").json()["paths"]))
