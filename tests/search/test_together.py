"""What belongs together is tied together: an index and its log, its server, its page and their addresses."""

import os
import shutil
import sqlite3

import numpy as np
import pytest
from conftest import run_here
from exports import write_export
from playwright.sync_api import expect
from small_search import add, as_bytes, draw, find_alike, opened, running
from starlette.testclient import TestClient

from models.exported import Exported
from search.index import Index
from search.server import make_app
from utils.errors import UserError

HERE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Exported:
    return Exported(write_export(tmp_path_factory.mktemp("student")))


def fill(file, student: Exported, seeds) -> None:
    folder = file.parent / f"pictures of {file.name}"
    folder.mkdir(exist_ok=True)
    for seed in seeds:
        draw(seed).save(folder / f"{seed:04}.png")
    with Index(file, write=True) as index:
        add(index, student, folder)


def killed(file, student: Exported, seeds) -> None:
    """As ``fill``, by a process that was killed: what it wrote last is in the log alone."""
    aside = file.with_name("aside")
    with sqlite3.connect(file) as holder:  # keeps the log from being taken into the file
        holder.execute("BEGIN")
        holder.execute("SELECT * FROM facts").fetchone()
        fill(file, student, seeds)
        shutil.copy(f"{file}-wal", aside)
        shutil.copy(file, f"{aside}.file")
    holder.close()
    aside.rename(f"{file}-wal")
    os.replace(f"{aside}.file", file)


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and not p.name.endswith((".lock", "-shm"))}


def test_a_backup_beside_a_left_over_log_is_noticed(student, tmp_path):
    live, backup = tmp_path / "live", tmp_path / "backup"
    fill(live, student, range(30))
    shutil.copy(live, backup)
    fill(live, student, range(30, 60))
    killed(live, student, range(60, 70))
    with Index(live) as index:  # with its own log it is whole
        assert len(index) == 70 and not index.faults()
    killed(live, student, range(70, 75))
    fill(other := tmp_path / "other", student, range(100, 112))
    for copy in (backup, other):
        shutil.copy(copy, live)
        before = contents(tmp_path)
        for words in (["info"], ["add", "--student", student.folder, tmp_path / "pictures of other"]):
            code, _ = run_here("search", words[0], "--index", live, *words[1:])
            assert "live-wal" in str(code) and "move it away" in str(code), code
        assert contents(tmp_path) == before
    live.rename(tmp_path / "away")  # SQLite would delete the log of a file that is gone
    code, _ = run_here("search", "add", "--index", live, "--student", student.folder, tmp_path / "pictures of other")
    assert "live-wal" in str(code) and not live.exists()
    (tmp_path / "away").rename(live)
    (tmp_path / "live-wal").rename(tmp_path / "kept")
    with Index(live) as index:
        assert len(index) == 12 and not index.faults()


def test_a_log_of_older_code_and_shared_memory_that_was_left_do_not_matter(student, tmp_path):
    live = tmp_path / "live"
    fill(live, student, range(5))
    with sqlite3.connect(live) as con:
        con.execute("DROP TABLE links")  # as an index of older code
    con.close()
    killed(live, student, range(5, 9))
    (tmp_path / "live-shm").write_bytes(bytes(range(256)) * 128)
    with Index(live) as index:
        assert len(index) == 9 and not index.faults()


def ask(client, seed: int, **form):
    return client.post("/api/search", data={"k": 5, **form}, files={"file": ("x.png", as_bytes(draw(seed)))})


def test_open_readers_and_the_server_notice_another_index(student, tmp_path):
    live, new = tmp_path / "live", tmp_path / "new"
    fill(live, student, range(9))
    fill(new, student, range(20, 24))
    with Index(live) as index:
        client = TestClient(make_app(index, student), HERE)
        before = client.get("/api/info").json()
        fill(live, student, range(9, 12))  # others go on writing meanwhile
        assert ask(client, 11).json()["results"][0]["distance"] == 0
        shutil.copy(live, tmp_path / "backup")
        os.replace(new, live)
        answer, info = ask(client, 21).json(), client.get("/api/info").json()
        assert answer["results"][0]["path"].endswith("0021.png") and answer["searched"] == info["pictures"] == 4
        assert info["index"] != before["index"]
        live.unlink()
        refusal = ask(client, 21)
        assert refusal.status_code == 503 and "is gone" in refusal.json()["error"]
        live.write_text("no index")
        assert "no index" in ask(client, 21).json()["error"]
        shutil.copy(tmp_path / "backup", live)
        assert ask(client, 11).json()["searched"] == 12
        shutil.copy(tmp_path / "backup", tmp_path / "larger")
        fill(tmp_path / "larger", student, range(40, 43))
        shutil.copy(tmp_path / "larger", live)  # over the open file
        assert ask(client, 41).json()["searched"] == 15


def test_an_answer_is_of_one_index(student, tmp_path, monkeypatch):
    live, new = tmp_path / "live", tmp_path / "new"
    fill(live, student, range(9))
    fill(new, student, range(20, 29))
    with Index(live) as index:
        paths = index._paths

        def replaced(ids):  # between the scan and the names of what it found
            if new.exists():
                os.replace(new, live)
            return paths(ids)

        monkeypatch.setattr(index, "_paths", replaced)
        hit = index.search(student.code(np.asarray(draw(23)))[None], 1)[0][0]
        assert hit.path.endswith("0023.png") and hit.distance == 0


def test_a_writer_notices_that_its_index_was_replaced(student, tmp_path):
    live, new = tmp_path / "live", tmp_path / "new"
    fill(live, student, range(3))
    fill(new, student, range(20, 24))
    with Index(live, write=True) as index:
        os.replace(new, live)
        with pytest.raises(UserError, match="another index was put there"):
            index.remove([1])
    with Index(live) as index:
        assert len(index) == 4 and not index.faults()


def test_a_stale_tab_shows_no_other_picture_and_says_that_there_are_newer_ones(chromium, student, tmp_path):
    live, new = tmp_path / "live", tmp_path / "new"
    fill(live, student, range(12))
    fill(new, student, range(20, 44))
    fill(new, student, [5])
    with Index(live) as index, running(make_app(index, student)) as address, opened(chromium, address) as page:
        shared = page.locator(".hit", has_text="0005.png").locator("button")
        gone = page.locator(".hit", has_text="0007.png").locator("button")
        expect(gone).to_be_visible()
        os.replace(new, live)
        gone.click()
        page.locator("#alike").click()
        expect(page.locator("#error")).to_contain_text("the index has no picture")
        expect(page.locator("#newer")).to_contain_text("12 pictures of ")
        shared.click()
        page.locator("#alike").click()
        expect(page.locator("#title")).to_have_text("0005.png")
        page.locator("#newer a").click()
        expect(page.locator("#about")).to_contain_text("25 pictures")
        expect(page.locator("#newer")).to_be_hidden()
        with Index(live, write=True) as writer:  # and what is only added to
            add(writer, student, tmp_path / "pictures of live")
        find_alike(page)
        expect(page.locator("#newer")).to_contain_text("25 pictures of ")


def test_looking_again_at_what_has_not_changed_is_no_newer_state(student, tmp_path):
    fill(tmp_path / "live", student, range(3))
    with Index(tmp_path / "live", write=True) as index:
        before = index.generation
        add(index, student, tmp_path / "pictures of live")
        assert index.generation == before
