"""Pictures that are there more than once, and queries that are edited copies."""

import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import run_here
from exports import write_export
from PIL import Image
from playwright.sync_api import expect
from small_search import add, draw, find_alike, opened, running
from starlette.testclient import TestClient

from models.exported import Exported
from search import copies
from search.index import Index
from search.server import make_app


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index of twelve pictures: of one two more files of the same bytes, of another two edited copies."""
    folder = tmp_path_factory.mktemp("copies")
    student = Exported(write_export(folder / "student"))
    (folder / "p").mkdir()
    for seed in range(12):
        draw(seed, (200, 150)).save(folder / f"p/{seed:02}.png")
    for name in ("again", "once more"):
        shutil.copy(folder / "p/03.png", folder / f"p/{name}.png")
    draw(5, (200, 150)).save(folder / "p/05 small.jpg", quality=60)
    draw(5, (200, 150)).point(lambda value: min(255, value + 12)).save(folder / "p/05 brighter.png")
    with Index(folder / "i", write=True) as index:
        add(index, student, folder / "p")
    return folder, student


def test_groups_of_copies_and_what_to_keep(made, tmp_path):
    before = sorted(made[0].rglob("*"))
    code, said = run_here("search", "duplicates", "--index", made[0] / "i", "--out", tmp_path / "d.csv")
    assert code == 0 and "2 groups; nothing was deleted" in said
    assert "same bytes as one to keep: 2 pictures" in said and "near copy as one to keep: 2 pictures" in said
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert [row["group"] for row in rows] == ["1"] * 3 + ["2"] * 3
    assert [row["what"] for row in rows] == ["keep", "same bytes", "same bytes", "keep", "near copy", "near copy"]
    names = [row["path"].split("/")[-1] for row in rows]
    assert names[0] == "03.png" and set(names[3:]) == {"05.png", "05 small.jpg", "05 brighter.png"}
    assert all(int(rows[3]["bytes"]) >= int(row["bytes"]) for row in rows[3:])
    assert sorted(made[0].rglob("*")) == before  # nothing is deleted


def test_the_one_with_most_pixels_is_to_be_kept(made, tmp_path):
    (tmp_path / "p").mkdir()
    draw(5, (200, 150)).save(tmp_path / "p/photo.jpg", quality=80)
    draw(5, (200, 150)).resize((160, 120)).save(tmp_path / "p/screen.bmp")  # more bytes
    with Index(tmp_path / "i", write=True) as index:
        add(index, made[1], tmp_path / "p")
        (group,) = copies.duplicates(index)
    assert [one.path.split("/")[-1] for one in group.pictures] == ["photo.jpg", "screen.bmp"]


def test_very_many_copies_are_one_group(tmp_path):
    one, two = copies.near(np.zeros((3000, 8), np.uint8), 3)
    assert not copies.connected(3000, one, two).any()


def test_an_edited_copy_is_said_to_be_likely_the_same(made, tmp_path):
    edited = draw(7, (200, 150)).resize((150, 112)).crop((3, 3, 147, 110))
    edited.save(tmp_path / "edited.jpg", quality=50)
    draw(99, (200, 150)).save(tmp_path / "other.jpg")
    words = ["search", "query", "--index", made[0] / "i", tmp_path / "edited.jpg", tmp_path / "other.jpg"]
    code, said = run_here(*words)
    assert code == 0 and said.count("(likely the same picture)") == 1
    assert "07.png  (likely" in said
    answers = json.loads(run_here(*words, "--json")[1])
    assert len(answers[0]["likely_same"]) == 1 and answers[1]["likely_same"] == []


def test_the_page_shows_copies(chromium, made):
    with Index(made[0] / "i") as index:
        app = make_app(index, made[1])
        client = TestClient(app, "http://127.0.0.1:8000")
        assert [len(group) for group in client.get("/api/duplicates").json()] == [3, 3]
        answer = client.post("/api/search", files={"file": ("x", (made[0] / "p/05 small.jpg").read_bytes())}).json()
        assert len(answer["likely_same"]) == 3
        with running(app) as address, opened(chromium, address) as page:
            page.click("#copies")
            expect(page.locator(".heading")).to_have_count(2)
            expect(page.locator(".hit")).to_have_count(6)
            expect(page.locator("#status")).to_contain_text("2 groups. Nothing is deleted")
            find_alike(page, 3)
            expect(page.locator(".grade.same")).to_have_count(3)
            page.go_back()
            expect(page.locator(".heading").first).to_contain_text("3 of the same bytes; keep the first")


def test_a_picture_without_detail_or_thumbnail_is_no_fault(made):
    blank = copies.look_at(Image.new("RGB", (9, 9), "white"))
    with Index(made[0] / "i") as index:
        code = index.codes()[1][:1]
        (hit,) = index.search(code, 1)[0]
        for look, one in ((blank, hit), (None, hit), (blank, replace(hit, id=99, content="0" * 16))):
            assert not copies.alike(look, index, one)
        mine = copies.look_of(index, hit.id)
        assert all(copies.alike(mine, index, hit) for _ in range(2)) and hit.content in copies.KNOWN
