"""The losses beside BRCD's, plain alignment among them: the released code's values, loops, closed forms, methods."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_losses import agrees, codes, cos, reals, shuffled

from losses.crcd import SHIFT, CRCDLoss
from losses.crd import CRDLoss
from losses.kl import KLLoss
from losses.methods import METHODS, Batch, build_method, draw_others
from losses.packd import PACKDLoss
from losses.pkt import PKTLoss
from losses.plain import BCELoss, CosineLoss, MSELoss
from losses.rkd import RKDLoss
from losses.sp import SPLoss
from losses.sskd import SSKDLoss
from utils.seeds import generator

QUICK = settings(deadline=None, max_examples=15)
shapes = st.tuples(st.integers(3, 7), st.integers(2, 20), st.integers(0, 10**6))
PLAIN = {"rkd": RKDLoss, "pkt": PKTLoss, "sp": SPLoss, "kl": partial(KLLoss, 4)}  # 4: of the released code
GOLDEN = ("rkd", "pkt", "sp", "kl", "sskd")  # of which tests/golden has another implementation's values


# Golden values


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("name", GOLDEN)
def test_golden(golden, device, name, case):
    g = golden(f"{name}_{case}", device)
    student = g["student"].requires_grad_()
    agrees({**PLAIN, "sskd": SSKDLoss}[name]()(student, g["teacher"]), g["loss"], [(student, g["grad_student"])])


def fill(loss, g) -> None:
    with torch.no_grad():
        for side in ("student", "teacher"):
            layer = getattr(loss, f"embed_{side}")
            layer.weight.copy_(g[f"embed_{side[0]}_weight"])
            layer.bias.copy_(g[f"embed_{side[0]}_bias"])


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("name, kind", [("crd", CRDLoss), ("crcd", CRCDLoss)])
def test_memory_golden(golden, device, name, kind, case):
    g = golden(f"{name}_{case}", device)
    student = g["student"].requires_grad_()
    loss = kind(
        student.shape[1],
        g["teacher"].shape[1],
        g["n_data"],
        feat_dim=g["memory_student"].shape[1],
        n_negatives=g["nce_k"],
        temperature=g["nce_t"],
        momentum=g["nce_m"],
    ).to(device)
    fill(loss, g)
    loss.memory_student.copy_(g["memory_student"])
    loss.memory_teacher.copy_(g["memory_teacher"])
    agrees(loss(student, g["teacher"], g["index"], g["contrast_index"]), g["loss"], [(student, g["grad_student"])])
    torch.testing.assert_close(loss.memory_student, g["memory_student_after"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.memory_teacher, g["memory_teacher_after"], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.z, torch.tensor([g["z_student"], g["z_teacher"]], device=device), rtol=1e-4, atol=0)


@pytest.mark.parametrize("case", range(3))
def test_packd_golden(golden, device, case):
    g = golden(f"packd_{case}", device)
    student = g["student"].requires_grad_()
    loss = PACKDLoss(
        student.shape[1],
        g["teacher"].shape[1],
        g["n_data"],
        feat_dim=g["memory"].shape[1],
        temperature=g["temperature"],
    ).to(device)
    fill(loss, g)
    loss.memory.copy_(g["memory"])
    agrees(loss(student, g["teacher"], g["index"], g["contrast_index"]), g["loss"], [(student, g["grad_student"])])
    torch.testing.assert_close(loss.memory, g["memory_after"], rtol=1e-4, atol=1e-6)


# Loops


def huber(x: float) -> float:
    return 0.5 * x * x if abs(x) < 1 else abs(x) - 0.5


def loop_rkd(s, t) -> float:
    n = range(len(s))

    def scaled(rows):
        d = [[float((rows[i] - rows[j]).norm()) for j in n] for i in n]
        mean = np.mean([x for line in d for x in line if x > 0])
        return [[x / mean for x in line] for line in d]

    a, b = scaled(s), scaled(t)
    distance = np.mean([huber(a[i][j] - b[i][j]) for i in n for j in n])
    angle = np.mean(
        [huber(cos(s[i] - s[k], s[j] - s[k]) - cos(t[i] - t[k], t[j] - t[k])) for k in n for i in n for j in n]
    )
    return 25 * distance + 50 * angle


def loop_pkt(s, t) -> float:
    def probabilities(rows):
        near = np.array([[(cos(a, b) + 1) / 2 for b in rows] for a in rows])
        return near / near.sum(axis=1, keepdims=True)

    q, p = probabilities(s), probabilities(t)
    return float(np.mean(p * np.log((p + 1e-7) / (q + 1e-7))))


def loop_sp(s, t) -> float:
    def gram(rows):
        g = np.array([[float(a @ b) for b in rows] for a in rows])
        return g / np.linalg.norm(g, axis=1, keepdims=True)

    return float(((gram(s) - gram(t)) ** 2).sum() / len(s) ** 2)


def loop_kl(s, t) -> float:
    total = 0.0
    for a, b in zip(s, t, strict=True):
        q, p = torch.softmax(a / 4, 0), torch.softmax(b / 4, 0)
        total += sum(float(y * math.log(y / x)) for x, y in zip(q, p, strict=True))
    return 16 * total / len(s)


LOOPS = {"rkd": loop_rkd, "pkt": loop_pkt, "sp": loop_sp, "kl": loop_kl}


@pytest.mark.parametrize("name", PLAIN)
@QUICK
@given(shapes)
def test_it_is_its_loop(name, shape):
    s, t = reals(2, shape[0], shape[1], seed=shape[2])
    assert PLAIN[name]()(s, t).item() == pytest.approx(LOOPS[name](s, t), rel=2e-3, abs=1e-5)


@QUICK
@given(shapes)
def test_sskd_is_its_loop(shape):
    images, bits, seed = shape
    s, t = reals(2, 4 * images, bits, seed=seed)
    total = 0.0
    for row in [r for r in range(4 * images) if r % 4]:
        q, p = (torch.softmax(torch.tensor([cos(x[row], x[4 * i]) for i in range(images)]) / 0.5, 0) for x in (s, t))
        total += 0.25 * float((p * (p / q).log()).sum())
    assert SSKDLoss()(s, t).item() == pytest.approx(total / (3 * images), rel=1e-3, abs=1e-6)


def loop_nce(scores: list[list[float]], n_data: int) -> float:
    total = 0.0
    for positive, *negative in scores:
        noise = len(negative) / n_data
        total -= math.log(positive / (positive + noise + 1e-7)) + sum(
            math.log(noise / (x + noise + 1e-7)) for x in negative
        )
    return total / len(scores)


@pytest.mark.parametrize("kind", [CRDLoss, CRCDLoss])
@pytest.mark.parametrize("seed", range(3))
def test_memory_losses_are_their_loops(kind, seed):
    torch.manual_seed(seed)
    loss = kind(6, 5, n_data=20, feat_dim=4, n_negatives=3, temperature=0.3)
    s, t, index = reals(4, 6, seed=seed), reals(4, 5, seed=seed + 1), torch.tensor([3, 7, 11, 2])
    contrast = torch.cat([index[:, None], draw_others(index, 3, 20, generator("c", seed))], dim=1)
    contrast[0, 1] = 7  # another image of the batch, so an anchor too
    total = 0.0
    for layer, rows, memory in (
        (loss.embed_student, s, loss.memory_teacher),
        (loss.embed_teacher, t, loss.memory_student),
    ):
        rows, memory = torch.nn.functional.normalize(layer(rows), dim=1).detach(), memory.clone()
        if kind is CRDLoss:
            raw = [[math.exp(float(memory[c] @ rows[b]) / 0.3) for c in contrast[b]] for b in range(4)]
        else:
            raw = [
                [math.exp(cos(rows[b] - memory[a] + SHIFT, memory[c] - memory[a] + SHIFT) / 0.3) for c in contrast[b]]
                for b in range(4)
                for a in index
            ]
        z = np.mean(raw) * 20
        total += loop_nce([[x / z for x in line] for line in raw], 20)
    assert loss(s, t, index, contrast).item() == pytest.approx(total, rel=1e-4)


def test_packd_is_its_loop():
    loss = PACKDLoss(6, 9, n_data=20, feat_dim=4)
    s, t, index = reals(4, 6), reals(4, 9, seed=1), torch.tensor([3, 7, 11, 2])
    contrast = draw_others(index, 5, 20, generator("c"))
    a, b = (
        torch.nn.functional.normalize(layer(x), dim=1).detach()
        for layer, x in ((loss.embed_student, s), (loss.embed_teacher, t))
    )
    memory = loss.memory.clone()
    memory[index] = b  # the first epoch keeps nothing
    total = 0.0
    for i in range(4):
        positive = math.exp(float(a[i] @ b[i]) / 0.07)
        total -= math.log(positive / (positive + sum(math.exp(float(a[i] @ memory[c]) / 0.07) for c in contrast[i])))
    assert loss(s, t, index, contrast).item() == pytest.approx(total / 4, rel=1e-4)


def test_packd_keeps_momentum_after_the_first_epoch():
    loss = PACKDLoss(4, 4, n_data=4, feat_dim=4)
    index, contrast = torch.arange(4), torch.tensor([[1], [2], [3], [0]])
    first, second = reals(2, 4, 4)
    loss(first, first, index, contrast)
    kept = loss.memory.clone()
    loss(second, second, index, contrast)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(loss.memory, unit(0.5 * kept + 0.5 * unit(second, dim=1), dim=1))


# Closed forms and properties


def test_plain_alignment_is_its_sum():
    s, t = reals(4, 6), codes(4, 6, seed=1)
    p, pairs = s.sigmoid(), [(i, b) for i in range(4) for b in range(6)]
    bce = -sum(math.log(p[i, b] if t[i, b] > 0 else 1 - p[i, b]) for i, b in pairs) / 24
    mse = sum((float(p[i, b]) - float(t[i, b] > 0)) ** 2 for i, b in pairs) / 24
    assert BCELoss()(s, t).item() == pytest.approx(bce, rel=1e-5)
    assert MSELoss()(s, t).item() == pytest.approx(mse, rel=1e-5)
    assert CosineLoss()(s, t).item() == pytest.approx(
        1 - np.mean([cos(a, b) for a, b in zip(s, t, strict=True)]), rel=1e-4
    )
    assert CosineLoss()(t, t).item() == pytest.approx(0, abs=1e-6)
    assert max(loss()(40 * t, t).item() for loss in (BCELoss, MSELoss)) < 1e-6


@pytest.mark.parametrize("name", [n for n, method in METHODS.items() if "both_views" in method.own])
def test_both_views_are_the_mean_of_each(name):
    student, teacher = reals(2, 8, 16), reals(2, 8, 16, seed=1)
    batch = Batch(torch.arange(8), student, teacher)
    other = Batch(torch.arange(8), student.flip(0), teacher.flip(0))
    i, j = (build_method(name, 16, 8)(b)["distillation"].item() for b in (batch, other))
    both = build_method(name, 16, 8, both_views=True)(batch)["distillation"].item()
    assert i != j and both == pytest.approx((i + j) / 2, rel=1e-5)


def test_the_temperature_of_kl_is_heeded():
    batch = Batch(torch.arange(8), reals(2, 8, 16), reals(2, 8, 16, seed=1))
    one, two = (build_method("kl", 16, 8, kd_temperature=t)(batch)["distillation"].item() for t in (1, 2))
    assert one != two and two == build_method("kl", 16, 8)(batch)["distillation"].item()


@pytest.mark.parametrize("name", [*PLAIN, "sskd"])
def test_a_student_like_its_teacher_has_no_loss(name):
    rows = reals(8, 12)
    loss = {**PLAIN, "sskd": SSKDLoss}[name]()
    assert loss(rows, rows.clone()).item() == pytest.approx(0, abs=1e-6)
    assert loss(reals(8, 12, seed=5), rows).item() > 1e-4


@pytest.mark.parametrize("name", ["rkd", "pkt", "sp", "sskd"])
def test_relations_do_not_see_a_rotation(name):
    s, t = reals(2, 8, 12)
    turn = torch.linalg.qr(reals(12, 12))[0]
    loss = {**PLAIN, "sskd": SSKDLoss}[name]()
    assert loss(s @ turn, t).item() == pytest.approx(loss(s, t).item(), rel=1e-3)


@pytest.mark.parametrize("name", PLAIN)
@QUICK
@given(shapes)
def test_the_images_order_does_not_matter(name, shape):
    s, t = reals(2, shape[0], shape[1], seed=shape[2])
    order = shuffled(shape[0], shape[2])
    assert PLAIN[name]()(s[order], t[order]).item() == pytest.approx(PLAIN[name]()(s, t).item(), rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_equal_codes_give_a_gradient_of_ordinary_size(name):
    rows = codes(6, 8)
    rows[3:] = rows[:3].clone()  # every code twice
    rows.requires_grad_()
    value = PLAIN[name]()(rows, codes(6, 8, seed=1))
    value.backward()
    assert math.isfinite(value.item()) and rows.grad.abs().max() < 100


@pytest.mark.parametrize(
    "make",
    [
        lambda: KLLoss(0),
        lambda: SSKDLoss(0),
        lambda: CRDLoss(4, 4, 9, temperature=0),
        lambda: CRCDLoss(4, 4, 9, n_negatives=0),
        lambda: PACKDLoss(4, 4, 9, temperature=0),
    ],
)
def test_constructors_refuse_nonsense(make):
    with pytest.raises(ValueError, match="it must"):
        make()


# As methods


def test_others_are_uniform_and_never_oneself():
    index = torch.tensor([0, 3, 9])
    others = draw_others(index, 9000, 10, generator("o"))
    assert (others != index[:, None]).all()
    counts = torch.stack([torch.bincount(row, minlength=10) for row in others])
    assert (counts.sum(dim=1) == 9000).all() and counts[counts > 0].min() > 850 and (counts == 0).sum() == 3


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("none", "brcd")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_method_gives_a_gradient_and_repeats(device, name, dtype):
    def value():
        torch.manual_seed(0)
        method = build_method(name, bits=16, n_data=600).to(device)
        student, rotated = (
            reals(2, 8, 16).to(device, dtype).requires_grad_(),
            reals(4, 8, 16, seed=3).to(device, dtype).requires_grad_(),
        )
        batch = Batch(
            torch.arange(8, device=device) * 7,
            student,
            reals(2, 8, 16, seed=1).to(device, dtype),
            generator("d"),
            rotated,
            reals(4, 8, 16, seed=4).to(device, dtype),
        )
        loss = method(batch)["distillation"]
        loss.backward()
        leaf = rotated if METHODS[name].rotations else student
        assert leaf.grad.abs().sum() > 0 and math.isfinite(loss.item()) and loss.dtype == torch.float32
        return loss.item()

    assert value() == value()


def test_memories_are_carried_by_a_checkpoint():
    assert {"memory_student", "memory_teacher", "z"} <= CRDLoss(4, 4, 9).state_dict().keys()
    assert {"memory", "seen"} <= PACKDLoss(4, 4, 9).state_dict().keys()
