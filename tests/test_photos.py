"""A tree of pictures without labels: which of them are used, and what is relevant to a query."""

import json
import os

import numpy as np
import pytest
import torch
from conftest import STUDENT, TEACHER, digits
from test_commands import last_json

import train_teacher
from data import photos
from data.digits import load as load_digits
from data.features import extractor
from models.backbones import build_backbone
from models.heads import load_head
from retrieval.metrics import mean_average_precision
from retrieval.relevance import nearest_by_cosine, relevance
from utils.errors import UserError


@pytest.fixture
def tree(tmp_path, photo):
    """30 pictures at three depths, with a broken file, a copy, a note and what is hidden."""
    root = tmp_path / "pictures"
    for i in range(30):
        photo(root / ("", "a", "a/b")[i % 3] / f"{i}.png", seed=i)
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "copy.png").write_bytes((root / "0.png").read_bytes())
    (root / "note.txt").write_text("x")
    photo(root / ".thumbnails" / "x.png", seed=90)
    photo(root / "a" / "._1.png", seed=91)
    (root / "a" / ".#lock").symlink_to("nothing")
    return root


def test_a_sample_of_any_tree(tree, tmp_path):
    data = photos.load(tree, train_images=10, cache_dir=tmp_path / "cache")
    names = data.source.names
    assert len(names) == 20 + 2 + 2 + 6 and all(part[0] != "." for name in names for part in name.split("/"))
    assert not {"broken.jpg", "note.txt"} & set(names) and len({"0.png", "copy.png"} & set(names)) == 1
    parts = [data.train, data.val, data.test]
    assert [len(p) for p in parts] == [10, 3, 3] and len(np.unique(np.concatenate(parts))) == 16
    assert len(data.database) == 24 and set(data.train) <= set(data.database) and data.k == 2
    assert not set(data.database) & {*data.val, *data.test}
    assert not data.labelled and "no labels" in data.describe()
    assert any("broken.jpg" in note for note in data.notes) and any("1 copies" in note for note in data.notes)


def test_at_most_what_is_asked_for_is_looked_at(tree, monkeypatch):
    seen = []
    broken_images = photos.broken_images
    monkeypatch.setattr(photos, "broken_images", lambda s, w: seen.extend(s.names) or broken_images(s, w))
    monkeypatch.setattr(photos, "QUERIES", 1)
    data = photos.load(tree, train_images=3)
    assert len(data.source) == 8 <= len(seen) <= 10 and len(data.train) == 3 and len(data.database) == 6


def test_the_seed_draws_and_the_answer_is_kept(tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    one, again, other = (photos.load(tree, 5, seed, cache) for seed in (0, 0, 1))
    assert one.fingerprint == again.fingerprint != other.fingerprint
    monkeypatch.setattr(photos, "broken_images", None)  # nothing is decoded a second time
    kept = photos.load(tree, 5, 0, cache)
    assert kept.fingerprint == one.fingerprint and kept.notes == one.notes
    for file in cache.glob("photos_*.json"):
        content = json.loads(file.read_text())
        content["answer"]["names"] = content["answer"]["names"][:-1]
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"{cache}/photos_.*damaged; delete it"):
        photos.load(tree, 5, 0, cache)


def test_a_sample_that_is_kept_stays(tree, tmp_path, photo):
    first = photos.load(tree, 10)
    photos.keep_sample(first, tmp_path)
    for i in range(5):
        photo(tree / f"new{i}.png", seed=100 + i)
    assert photos.load(tree, 10).fingerprint != first.fingerprint
    kept = photos.load(tree, 10, sample=tmp_path / photos.SAMPLE)
    assert kept.fingerprint == first.fingerprint and np.array_equal(kept.train, first.train)
    (tree / first.source.names[3]).unlink()
    with pytest.raises(UserError, match="of the pictures that the run was made of are gone"):
        photos.load(tree, 10, sample=tmp_path / photos.SAMPLE)
    (tmp_path / photos.SAMPLE).write_text('{"names": 1}')
    with pytest.raises(UserError, match=r"sample\.json: damaged"):
        photos.load(tree, 10, sample=tmp_path / photos.SAMPLE)


def test_ten_pictures_are_enough_and_three_are_not(tmp_path, photo):
    for i in range(10):
        photo(tmp_path / "p" / f"{i}.jpg", seed=i)
    data = photos.load(tmp_path / "p")
    assert (len(data.val), len(data.test), len(data.database), data.k) == (1, 1, 8, 1)
    for i in range(7):
        os.unlink(tmp_path / "p" / f"{i}.jpg")
    with pytest.raises(UserError, match=r"3 different pictures .* at least 4"):
        photos.load(tmp_path / "p")
    with pytest.raises(UserError, match="no such folder"):
        photos.load(tmp_path / "nothing")


class Features:
    def __init__(self, rows):
        self.rows = rows

    def evaluation(self, rows):
        return self.rows[rows]


def test_what_features_find_is_relevant(tree):
    data = photos.load(tree, train_images=10)
    features = np.random.RandomState(0).randn(len(data.source), 6).astype(np.float16)
    queries, database = relevance(data, data.test, data.database, Features(features))
    assert queries.shape == (3, 3) and database.shape == (24, 3) and (database.sum(axis=0) == data.k).all()
    unit = torch.nn.functional.normalize(torch.from_numpy(features).double(), dim=1).numpy()
    for q, row in enumerate(data.test):
        nearest = sorted(range(24), key=lambda i: -unit[row] @ unit[data.database[i]])[: data.k]
        assert set(np.flatnonzero(database[:, q])) == set(nearest)
    codes = np.where(database @ (np.eye(3) * 2 - 1) > 0, 1, -1)  # a code that says whose neighbour an image is
    assert mean_average_precision(np.eye(3) * 2 - 1, codes, queries, database, data.k) > 0.9


def test_the_nearest_are_in_the_databases_order_where_they_are_level():
    rows = np.array([[1, 0], [2, 0], [0, 1], [0.5, 0]], dtype=np.float16)
    assert nearest_by_cosine(rows[:1], rows, 4).tolist() == [[0, 1, 3, 2]]
    assert nearest_by_cosine(np.zeros((1, 2)), rows, 2).tolist() == [[0, 1]]


@pytest.mark.slow
def test_from_pictures_to_a_measure_that_is_no_class_map(cli, tree, tmp_path, photo):
    words = ["--dataset", "photos", "--data-dir", tree, "--train-images", 20, "--size", 64, "--views", 2]
    words += ["--cache-dir", tmp_path / "cache"]
    code, out = cli(
        *("train_teacher.py", *words, "--backbone", TEACHER, "--bits", 16, "--epochs", 3),
        *("--validate-every", 1, "--run-dir", tmp_path / "t"),
    )
    assert code == 0 and "validation mAP@2 of the teacher's nearest by features" in out, out
    photo(tree / "a" / "new.png", seed=95)  # changes nothing for what is made of this teacher
    code, out = cli(
        *("distill.py", "--teacher", tmp_path / "t", "--student", STUDENT, "--clusters", 3, "--epochs", 2),
        *("--run-dir", tmp_path / "s"),
    )
    assert code == 0 and "purity" not in out and "SSHP mAP@2 of the teacher's nearest" in out, out
    code, out = cli("evaluate.py", "--run", tmp_path / "s", "--dump-codes", tmp_path / "codes", "--pictures", 2)
    assert code == 0 and "says how well codes find those, and nothing about classes" in out, out
    result = last_json(out)
    assert result["relevance"] == "features" and "share" not in result["definition"].rpartition(";")[2]
    assert "per_label_precision" not in result["sshp"]
    code, out = cli("export.py", "--run", tmp_path / "s", "--out", tmp_path / "e", "--precision", "int8")
    assert code == 0 and "int8: " in out and "of the teacher's nearest by features of 3 validation queries" in out, out
    code, out = cli("scripts.report", tmp_path / "s" / "test.json", "--out", tmp_path / "report")
    assert code == 0 and "mAP@2 over the teacher's nearest by features retrieved" in out, out
    code, out = cli("scripts.check_data", "--dataset", "photos", "--data-dir", tree)
    assert code == 0 and "no problem found" in out, out
    code, out = cli("scripts.make_shards", "--dataset", "photos", "--data-dir", tree, "--out", tmp_path / "shards")
    assert "no labels" in str(code) and not (tmp_path / "shards").exists()


@pytest.mark.slow
def test_labelled_images_are_selected_by_features_where_that_is_asked_for(cli, shared, tmp_path):
    teacher, student = tmp_path / "t", tmp_path / "s"
    words = [*digits(shared), "--select-by", "features", "--backbone", TEACHER, "--bits", 16, "--epochs", 2]
    code, out = cli("train_teacher.py", *words, "--validate-every", 1, "--run-dir", teacher)
    assert code == 0 and "validation mAP@9 of the teacher's nearest by features" in out, out
    learn = ["--select-by", "features", "--teacher", teacher, "--student", STUDENT, "--clusters", 3]
    learn += ["--epochs", 1, "--run-dir", student]
    code, out = cli("distill.py", *learn)
    assert code == 0 and "SSHP mAP@9 of the teacher's nearest by features" in out, out
    code, out = cli("evaluate.py", "--run", student, "--pictures", 0)
    result = last_json(out)
    assert result["relevance"] == "labels" and result["options"]["select_by"] == "features"
    code, out = cli("export.py", "--run", student, "--out", tmp_path / "e")
    assert code == 0, out
    card = json.loads((tmp_path / "e" / "card.json").read_text())
    assert card["metrics"]["measure"] == "mAP@9 of the teacher's nearest by features"

    judged = photos.unlabelled(load_digits(limit=90))
    args = train_teacher.make_parser().parse_args(list(map(str, [*words, "--run-dir", teacher])))
    features = extractor(args, judged, build_backbone(TEACHER), torch.device("cpu"))
    head, facts = load_head(teacher / "best_map.pt")
    codes = [head.encode(features.evaluation(rows)) for rows in (judged.val, judged.database)]
    labels = relevance(judged, judged.val, judged.database, features)
    assert facts["metrics"]["map"] == mean_average_precision(*codes, *labels, 9) and judged.k == 9
