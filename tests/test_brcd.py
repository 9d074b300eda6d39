"""BRCD as a method: every ablation and the released variant against a computation of its own and golden values."""

import itertools
import math

import pytest
import torch
from torch import nn

import distill
from losses.brcd import hard_weights
from losses.methods import BRCD, Batch, BRCDOptions, Knowledge, build_method
from utils.seeds import generator

PARTS = ("mask", "cluster", "offset", "false_negatives", "individual", "structural")


def batch_and_knowledge(seed: int = 0, device: torch.device | str = "cpu"):
    draw = generator("method", seed)
    student, teacher = torch.randn(2, 2, 12, 16, generator=draw)
    cluster = torch.randint(0, 3, (40,), generator=draw)
    centroids = torch.randn(3, 16, generator=draw)
    masks = torch.randint(0, 2, (3, 16), generator=draw)
    batch = Batch(torch.arange(5, 17).to(device), student.to(device).requires_grad_(), teacher.to(device))
    return batch, Knowledge(cluster.to(device), centroids.to(device), masks.to(device))


def value(**options) -> float:
    batch, knowledge = batch_and_knowledge()
    return BRCD(knowledge, BRCDOptions(**options))(batch)["distillation"].item()


# A computation of its own: plain numbers, lists and loops, from the method's text; nothing of losses is used.


def signs(rows: torch.Tensor) -> list[list[float]]:
    return [[1.0 if x >= 0 else -1.0 for x in row] for row in rows.tolist()]


def cosine(a: list[float], b: list[float]) -> float:
    lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else 0.0


def times(a: list[float], b: list[float]) -> list[float]:
    return [x * y for x, y in zip(a, b, strict=True)]


def nearest(code: list[float], centroids: list[list[float]]) -> int:
    squared = [sum((x - y) ** 2 for x, y in zip(code, c, strict=True)) for c in centroids]
    return squared.index(min(squared))


def naive_brcd(
    batch: Batch, knowledge: Knowledge, temperature=0.3, alpha=0.8, released=False, without=(), hardness=0.0
) -> float:
    z, t_i, t_j = signs(batch.student[0]), signs(batch.teacher[0]), signs(batch.teacher[1])
    n, bits = len(z), len(z[0])
    c_i = [knowledge.cluster.tolist()[image] for image in batch.index.tolist()]
    if released:
        mask = [[0.0] * bits for _ in range(n)]
    elif "mask" in without:
        mask = [[1.0] * bits for _ in range(n)]
    else:
        mask = [knowledge.bit_masks.tolist()[c] for c in c_i]
    centroids = knowledge.centroids.tolist()
    c_j = [nearest(times(mask[i], t_j[i]) if released else t_j[i], centroids) for i in range(n)]
    if "cluster" in without or "offset" in without:
        c_j = c_i
    drop = not ("cluster" in without or "false_negatives" in without)
    rows = [times(mask[i], z[i]) for i in range(n)] + [times(mask[i], t_j[i]) for i in range(n)]
    cluster = c_i + c_j
    total = 0.0
    for r in range(2 * n):
        i = r % n
        share = 0.0 if "individual" in without else 1.0 if "structural" in without else alpha
        share = 1.0 if c_i[i] != c_j[i] else share
        positive = share * cosine(z[i], t_i[i]) + (1 - share) * cosine(times(mask[i], z[i]), times(mask[i], t_j[i]))
        compared = cluster[i] if released else cluster[r]  # released: the teacher's rows drop what the student's do
        negatives = [
            cosine(rows[r], rows[s]) for s in range(2 * n) if s % n != i and not (drop and cluster[s] == compared)
        ]
        scores = [c / temperature for c in (positive, *negatives)]
        weights = [math.exp(hardness * score) for score in scores[1:]]
        weights = [w * len(weights) / sum(weights) for w in weights]
        terms = [math.exp(s) * w for s, w in zip(scores, [1.0, *weights], strict=True)]
        total += math.log(sum(terms)) - scores[0]
    return total / (2 * n)


OFF = [
    off
    for size in range(3)
    for off in itertools.combinations(PARTS, size)
    if off != ("individual", "structural")  # no positive would be left
]


@pytest.mark.parametrize("off", OFF, ids=lambda off: "without " + " and ".join(off) if off else "whole")
def test_every_ablation_is_the_loss_without_that_part(device, off):
    batch, knowledge = batch_and_knowledge(device=device)
    options = BRCDOptions(alpha=0.35, temperature=0.7, **dict.fromkeys(off, False))
    known = naive_brcd(batch, knowledge, 0.7, 0.35, without=off)
    assert BRCD(knowledge, options).to(device)(batch)["distillation"].item() == pytest.approx(known, rel=1e-5)


@pytest.mark.parametrize("hardness", [0.5, 3.0])
def test_hardness_weighs_near_negatives_more(device, hardness):
    batch, knowledge = batch_and_knowledge(device=device)
    method = BRCD(knowledge, BRCDOptions(hardness=hardness)).to(device)
    loss = method(batch)["distillation"]
    assert loss.item() == pytest.approx(naive_brcd(batch, knowledge, hardness=hardness), rel=1e-5)
    loss.backward()
    assert batch.student.grad.isfinite().all() and loss.item() > value()


def test_hardness_where_a_row_has_no_negatives():
    batch, knowledge = batch_and_knowledge()
    one = Knowledge(torch.zeros_like(knowledge.cluster), knowledge.centroids[:1], knowledge.bit_masks[:1])
    loss = BRCD(one, BRCDOptions(hardness=1.0))(batch)["distillation"]
    loss.backward()
    assert loss.item() == 0 and batch.student.grad.isfinite().all()


def test_every_part_of_brcd_matters():
    values = [value(), *(value(**{part: False}) for part in PARTS), value(variant="released")]
    assert len({round(v, 6) for v in values}) == len(values)


@pytest.mark.parametrize("part", PARTS)
def test_the_command_line_switches_off_the_part_that_it_names(part):
    words = ["--teacher", "t", "--run-dir", "r", f"--no-{part.replace('_', '-')}"]
    assert distill.brcd_options(distill.make_parser().parse_args(words)) == BRCDOptions(**{part: False})


def test_the_command_line_hands_every_value_of_brcd_on():
    other = {
        "temperature": 0.5,
        "alpha": 0.25,
        "margin": 0.125,
        "clusters": 7,
        "mask_rule": "undecided",
        "variant": "released",
        "hardness": 0.75,
    }
    assert other.keys() | set(PARTS) == vars(BRCDOptions()).keys()
    words = [word for name, value in other.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    args = distill.make_parser().parse_args(["--teacher", "t", "--run-dir", "r", *words])
    assert distill.brcd_options(args) == BRCDOptions(**other)


# The golden inputs: each of their four variants is BRCD with some of its parts


def golden_batch(g: dict) -> tuple[Batch, Knowledge]:
    """A golden case as the method sees it: logits whose signs are the codes, and centroids that give the clusters."""
    n, bits = g["student"].shape
    clusters = int(max(g["cluster_i"].max(), g["cluster_j"].max())) + 1
    masks = torch.zeros(clusters, bits, device=g["student"].device)
    masks[g["cluster_i"]] = g["bit_mask"].float()
    assert (masks[g["cluster_i"]] == g["bit_mask"]).all()  # one mask a cluster
    # By least squares t_j . c is 1 for its own centroid and 0 for others; short ones leave that product to decide.
    one_hot = torch.eye(clusters, device=masks.device)[g["cluster_j"]]
    centroids = 0.01 * (torch.linalg.pinv(g["teacher_j"]) @ one_hot).T
    assert [nearest(code, centroids.tolist()) for code in g["teacher_j"].tolist()] == g["cluster_j"].tolist()
    student = torch.stack([g["student"], -g["student"]]).requires_grad_()
    batch = Batch(torch.arange(n, device=masks.device), student, torch.stack([g["teacher_i"], g["teacher_j"]]))
    return batch, Knowledge(g["cluster_i"], centroids, masks)


def gradient_of_codes(batch: Batch) -> torch.Tensor:
    """The gradient of the codes of view i, from that of their logits: it went through the sigmoid."""
    p = torch.sigmoid(batch.student[0].detach())
    assert not batch.student.grad[1].any()  # view j of the student takes no part
    return batch.student.grad[0] / (p * (1 - p))


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("variant", range(4))
def test_the_method_gives_the_golden_values(golden, device, case, variant):
    g = golden(f"brcd_{case}_{variant}", device)
    batch, knowledge = golden_batch(g)
    parts = {"mask": variant in (1, 3), "false_negatives": variant in (2, 3)}
    options = BRCDOptions(alpha=g["alpha"], temperature=g["temperature"], **parts)
    loss = BRCD(knowledge, options).to(device)(batch)["distillation"]
    assert loss.item() == pytest.approx(g["loss"], rel=1e-5)
    loss.backward()
    known = g["grad_student"]
    torch.testing.assert_close(gradient_of_codes(batch), known, rtol=1e-4, atol=1e-4 * known.abs().max().item())


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("variant", range(4))
def test_released_on_the_golden_inputs_has_its_three_slips(golden, device, case, variant):
    """No golden output holds them, so a loop is compared with; without any one of the slips it gives another value."""
    g = golden(f"brcd_{case}_{variant}", device)
    batch, knowledge = golden_batch(g)
    options = BRCDOptions(alpha=g["alpha"], temperature=g["temperature"], variant="released")
    loss = BRCD(knowledge, options).to(device)(batch)["distillation"]
    assert loss.item() == pytest.approx(naive_brcd(batch, knowledge, g["temperature"], g["alpha"], True), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_released_is_its_loop_also_without_parts(seed):
    batch, knowledge = batch_and_knowledge(seed)
    for off in ((), ("offset",), ("false_negatives",), ("cluster",), ("mask",)):
        options = BRCDOptions(variant="released", **dict.fromkeys(off, False))
        known = naive_brcd(batch, knowledge, released=True, without=off)
        assert BRCD(knowledge, options)(batch)["distillation"].item() == pytest.approx(known, rel=1e-5), off


def test_released_has_no_mask_and_sends_every_augmentation_to_one_centroid():
    batch, knowledge = batch_and_knowledge()
    method = BRCD(knowledge, BRCDOptions(variant="released"))
    assert not method.masks.any()
    seen = []
    method.loss.forward = lambda *inputs: seen.append(inputs) or torch.zeros(())
    method(batch)
    assert seen[0][4].unique().numel() == 1  # cluster_j
    nearest_to_zero = knowledge.centroids.norm(dim=1).argmin()
    assert (seen[0][4] == nearest_to_zero).all()


def test_methods_are_built_by_name_and_none_adds_nothing():
    batch, _ = batch_and_knowledge()
    assert build_method("none", bits=16, n_data=40)(batch) == {}
    assert isinstance(build_method("none", bits=16, n_data=40), nn.Module)


def test_no_gradient_passes_the_weights_of_hard_negatives():
    negatives = torch.randn(4, 6, requires_grad=True)
    assert not hard_weights(negatives, 2.0).requires_grad
