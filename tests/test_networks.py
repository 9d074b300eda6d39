"""Teacher and student are two networks, and every number comes from the right one: recomputed by lines of its own."""

import argparse
import csv
import json
import math

import numpy as np
import pytest
import torch
from conftest import STUDENT, TEACHER, digits
from test_brcd import naive_brcd
from test_losses import loop_nt_xent

import distill
from data import digits as digits_data
from data.features import extractor
from data.transforms import eval_transform
from data.views import BankedViews, ViewBatch
from losses.methods import Batch, Knowledge
from models.backbones import build_backbone
from models.heads import HashHead, load_head
from utils.devices import pick_device

pytestmark = pytest.mark.slow  # whole command lines

SETTINGS = {  # (network, its best head) of the queries and of the database
    "sshp": ((STUDENT, "run/best_sshp.pt"), (STUDENT, "run/best_sshp.pt")),
    "ashp": ((STUDENT, "run/best_ashp.pt"), (TEACHER, "../teacher/best_map.pt")),
    "teacher": ((TEACHER, "../teacher/best_map.pt"), (TEACHER, "../teacher/best_map.pt")),
}


def dumped(folder, setting: str, part: str) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """(codes in {-1, +1}, 0/1 labels, paths) as evaluate.py wrote them; unpacked bit by bit, the first the highest."""
    with np.load(folder / "codes" / f"{setting}_{part}.npz", allow_pickle=False) as file:
        packed, bits = file["codes"].tolist(), int(file["bits"])
        labels, paths = file["labels"].tolist(), file["paths"].tolist()
    return [[1 if row[b // 8] & (128 >> b % 8) else -1 for b in range(bits)] for row in packed], labels, paths


def average_precision(query, label, codes, labels, k: int) -> dict[str, float]:
    """AP@k by denominator; what is at one distance keeps the database's order."""
    distance = [sum(x != y for x, y in zip(query, code, strict=True)) for code in codes]
    relevant = [any(x and y for x, y in zip(label, other, strict=True)) for other in labels]
    order = [i for radius in range(len(query) + 1) for i in range(len(codes)) if distance[i] == radius]
    hits, gain = 0, 0.0
    for rank in range(1, min(k, len(codes)) + 1):
        if relevant[order[rank - 1]]:
            hits += 1
            gain += hits / rank
    divide_by = {"retrieved": hits, "min": min(k, sum(relevant)), "total": sum(relevant)}
    return {name: gain / d if d else 0.0 for name, d in divide_by.items()}


def check_map(folder, result: dict, aps) -> None:
    for setting in SETTINGS:
        (codes, labels, _), (database, database_labels, _) = (dumped(folder, setting, p) for p in ("query", "database"))
        known = [
            average_precision(code, label, database, database_labels, result[setting]["k"])
            for code, label in zip(codes, labels, strict=True)
        ]
        for name in ("retrieved", "min", "total"):
            mean = sum(ap[name] for ap in known) / len(known)
            assert result[setting]["map"][f"stable/{name}"] == pytest.approx(mean, abs=1e-9), setting
        assert aps[setting].tolist() == pytest.approx([ap["retrieved"] for ap in known], abs=1e-9)


def test_map_is_that_of_the_dumped_codes(measured):
    with np.load(measured / "out.npz", allow_pickle=False) as aps:
        check_map(measured, json.loads((measured / "out.json").read_text()), aps)


def test_validation_in_training_is_evaluation_on_the_validation_queries(cli, measured, tmp_path):
    out = tmp_path / "val.json"
    words = ["--queries", "val", "--json", out, "--dump-codes", tmp_path / "codes", "--pictures", 0]
    code, said = cli("evaluate.py", "--run", measured / "run", *words)
    assert code == 0, said
    result, summary = json.loads(out.read_text()), json.loads((measured / "run/summary.json").read_text())
    for setting in ("sshp", "ashp"):
        assert result[setting]["map"]["stable/retrieved"] == pytest.approx(summary["best"][setting]["value"], abs=1e-9)
    taught = json.loads((measured / "../teacher/summary.json").resolve().read_text())
    assert result["teacher"]["map"]["stable/retrieved"] == pytest.approx(taught["best"]["map"]["value"], abs=1e-9)
    with np.load(tmp_path / "val.npz", allow_pickle=False) as aps:
        check_map(tmp_path, result, aps)
    paths = dumped(tmp_path, "ashp", "query")[2]
    images = digits_data.load(limit=90)
    assert paths == [images.source.names[i] for i in images.val] != [images.source.names[i] for i in images.test]


@pytest.fixture(scope="module")
def logits(measured):
    """Logits of images by (network, head), through PyTorch alone: no engine, no cache of the project's."""
    images, features = digits_data.load(limit=90), {}
    rows = np.concatenate([images.database, images.test])
    pixels = torch.stack([eval_transform(images.source[i], 64, images.crop) for i in rows])
    with torch.inference_mode():
        for network in (STUDENT, TEACHER):
            features[network] = dict(zip(rows.tolist(), build_backbone(network)(pixels), strict=True))

    def of(network: str, head: str, rows: np.ndarray) -> torch.Tensor:
        with torch.inference_mode():
            return load_head(measured / head)[0](torch.stack([features[network][i] for i in rows.tolist()]))

    return of


def agree(codes, logits: torch.Tensor) -> None:
    """Other sums round otherwise, so a bit whose logit is next to 0 may differ; no other may."""
    same = torch.tensor(codes) == torch.where(logits >= 0, 1, -1)
    assert same.float().mean() > 0.98 and same[logits.abs() > 0.1 * logits.std()].all()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("part", ["query", "database"])
def test_codes_are_those_of_the_settings_own_network_and_head(measured, logits, setting, part):
    images = digits_data.load(limit=90)
    rows = images.test if part == "query" else images.database
    codes, labels, paths = dumped(measured, setting, part)
    assert labels == images.labels[rows].tolist() and paths == [images.source.names[i] for i in rows]
    agree(codes, logits(*SETTINGS[setting][part == "database"], rows))


def test_no_other_network_or_head_gives_those_codes(measured, logits):
    """What the tests around this one tell apart is apart, the student's two best heads too."""
    assert dumped(measured, "sshp", "query")[0] != dumped(measured, "ashp", "query")[0]
    images = digits_data.load(limit=90)
    for network, head in ((TEACHER, "run/best_sshp.pt"), (STUDENT, "../teacher/best_map.pt")):
        other = logits(network, head, images.database)
        for setting in ("sshp", "ashp"):
            codes = torch.tensor(dumped(measured, setting, "database")[0])
            assert (codes == torch.where(other >= 0, 1, -1)).float().mean() < 0.9


def test_training_codes_and_clusters_are_of_the_right_network(measured, logits):
    images = digits_data.load(limit=90)
    for folder, network, head in (
        ("run", STUDENT, "run/best_sshp.pt"),
        ("../teacher", TEACHER, "../teacher/best_map.pt"),
    ):
        with np.load(measured / folder / "train_codes.npz", allow_pickle=False) as kept:
            codes = np.unpackbits(kept["codes"], axis=1, count=16).astype(int) * 2 - 1
        agree(codes, logits(network, head, images.train))
    # The last codes above are the teacher's: clusters and masks are made of them.
    with np.load(measured / "run" / "clusters.npz", allow_pickle=False) as kept:
        labels, centroids, masks = kept["labels"], kept["centroids"], kept["bit_masks"]
    assert centroids.shape == (5, 16)
    for c in range(5):
        mean = codes[labels == c].mean(axis=0)
        np.testing.assert_allclose(centroids[c], mean, atol=1e-5)
        assert (masks[c] == (abs(mean) >= 0.5)).all()
    for code, label in zip(codes, labels, strict=True):
        assert np.linalg.norm(centroids - code, axis=1).argmin() == label


# The first step of distillation


def loop_bernoulli_kl(a: torch.Tensor, b: torch.Tensor) -> float:
    total = 0.0
    for p, q in zip(torch.sigmoid(a).flatten().tolist(), torch.sigmoid(b).flatten().tolist(), strict=True):
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return total / len(a)


def test_the_first_loss_is_that_of_the_two_networks_own_features(cli, shared, teacher, tmp_path):
    """Of one batch of all images, before anything is learnt: by loops, from features that are asked for one by one."""
    words = [*digits(shared), "--teacher", teacher, "--student", STUDENT, "--clusters", 3, "--seed", 3]
    words += ["--epochs", 1, "--batch-size", 90, "--lr", 0, "--kl-weight", 0.1, "--kd-weight", 0.5, "--alpha", 0.4]
    words += ["--temperature", 0.6, "--run-dir", tmp_path / "run"]
    code, out = cli("distill.py", *words)
    assert code == 0, out
    with open(tmp_path / "run/log.csv", newline="") as file:
        (row,) = csv.DictReader(file)

    args, images = distill.make_parser().parse_args(list(map(str, words))), digits_data.load(limit=90)
    device = pick_device("auto")
    banks = [extractor(args, images, build_backbone(n), device).bank(2)[:] for n in (STUDENT, TEACHER)]
    (batch,) = BankedViews(banks, seed=3).epoch(1, 90)
    student_head, teacher_head = HashHead(1000, 16, "mlp", seed=3), load_head(teacher / "best_map.pt")[0]
    with torch.no_grad():
        student, taught = student_head(batch.pairs[0]), teacher_head(batch.pairs[1])
    z = torch.where(student >= 0, 1.0, -1.0)
    contrastive = loop_nt_xent(z[0], z[1], 0.6)
    kl = (loop_bernoulli_kl(*student) + loop_bernoulli_kl(*student.flip(0))) / 2
    with np.load(tmp_path / "run/clusters.npz", allow_pickle=False) as kept:
        knowledge = Knowledge(*(torch.from_numpy(kept[name]) for name in ("labels", "centroids", "bit_masks")))
    brcd = naive_brcd(Batch(batch.index, student, taught), knowledge, temperature=0.6, alpha=0.4)
    known = {"contrastive": contrastive, "kl": kl, "distillation": brcd}
    for name, number in (known | {"loss": contrastive + 0.1 * kl + 0.5 * brcd}).items():
        assert float(row[name]) == pytest.approx(number, rel=1e-4), name


class Fake:
    """An extractor whose features say where they come from."""

    def __init__(self, sign: int, size: int, device: torch.device):
        self.sign, self.size, self.device = sign, size, device

    def engine(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[-2:] == (self.size, self.size)
        return self.sign * pixels.float().mean(dim=(2, 3))  # [B, 3]

    def bank(self, n_views: int, quarters: int = 0) -> np.ndarray:
        view, image = np.meshgrid(np.arange(n_views), np.arange(12), indexing="ij")
        rows = np.stack([view + 1, image + 1, np.full(view.shape, quarters + 1)], axis=-1)  # [n_views, 12, 3]
        return (self.sign * rows).astype(np.float16)


@pytest.fixture
def fakes(device):
    return Fake(1, 16, device), Fake(-1, 24, device), HashHead(3, 5, seed=7).to(device)


def test_banked_views_hold_the_students_features_and_the_teachers_logits(device, fakes):
    student, teacher, head = fakes
    args = argparse.Namespace(views=4, rotated_views=2, seed=0, workers=1)
    views = distill.training_views(args, None, student, teacher, head, device, rotations=True)
    for batch in views.epoch(1, 5):
        features, taught = batch.pairs  # [2, B, 3], [2, B, 5]
        assert (features > 0).all() and (features[..., 1] == batch.index + 1).all() and (features[..., 2] == 1).all()
        torch.testing.assert_close(taught, head(-features.to(device)).detach().cpu(), rtol=1e-4, atol=1e-4)
        rotated, taught_rotated = batch.rotated  # [4, B, 3], [4, B, 5]
        assert (rotated[:, :, 2] == torch.arange(1, 5)[:, None]).all() and rotated[..., 0].max() == 2
        torch.testing.assert_close(taught_rotated, head(-rotated.to(device)).detach().cpu(), rtol=1e-4, atol=1e-4)


def test_fresh_views_hold_the_students_features_and_the_teachers_logits(device, fakes):
    student, teacher, head = fakes
    args = argparse.Namespace(views=0, rotated_views=2, seed=0, workers=1)
    images = digits_data.load(limit=12)
    views = distill.training_views(args, images, student, teacher, head, device, rotations=True)
    for batch in views.epoch(1, 5):
        for features, taught in (batch.pairs, batch.rotated):
            assert (features > 0).all() and features.shape[-1] == 3 and not taught.requires_grad
            # The teacher sees the same views at 24 pixels, so its features' means are near the student's.
            torch.testing.assert_close(taught, head(-features).detach(), rtol=0, atol=4)


def test_a_step_gives_each_loss_what_it_is_of(device):
    head, weight = HashHead(3, 5, seed=7).to(device), 0.25
    draw = torch.Generator().manual_seed(1)
    features, taught = torch.randn(2, 4, 3, generator=draw), torch.randn(2, 4, 5, generator=draw)
    rotated, taught_rotated = torch.randn(4, 4, 3, generator=draw), torch.randn(4, 4, 5, generator=draw)
    seen = []

    def hashing(logits, rows):
        seen.append((logits, rows))
        return {"loss": logits.sum(), "own": rows.sum()}

    def method(batch):
        seen.append(batch)
        return {"one": batch.teacher.sum(), "two": batch.student.sum()}

    step = distill.Step(head, hashing, method, weight, device)
    terms = step(ViewBatch(torch.tensor([3, 1, 0, 2]), [features, taught], [rotated, taught_rotated]), draw)
    (logits, rows), batch = seen
    close = torch.testing.assert_close
    close(rows.cpu(), features)
    close(logits, head(features.to(device)))
    close(batch.student, logits)
    close(batch.teacher.cpu(), taught)
    close(batch.student_rotated, head(rotated.to(device)))
    close(batch.teacher_rotated.cpu(), taught_rotated)
    assert batch.index.tolist() == [3, 1, 0, 2] and batch.draw is draw and batch.index.device.type == device.type
    close(terms["loss"], logits.sum() + weight * (taught.sum().to(device) + logits.sum()))
    assert terms.keys() == {"loss", "own", "one", "two"}
