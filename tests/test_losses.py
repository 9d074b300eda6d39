"""Losses against the released code's values, loops over pairs, closed forms, and properties that must hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from losses.binarize import binarize
from losses.brcd import BRCDLoss
from losses.cibhash import CIBHashLoss, bernoulli_kl
from losses.nt_xent import NTXentLoss

QUICK = settings(deadline=None, max_examples=25)
shapes = st.tuples(st.integers(2, 9), st.integers(1, 33), st.integers(0, 10**6))


def codes(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).float() * 2 - 1


def reals(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shuffled(n: int, seed: int) -> torch.Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def cos(a: torch.Tensor, b: torch.Tensor) -> float:
    norm = a.norm() * b.norm()
    return float(a @ b / norm) if norm > 0 else 0.0


def agrees(loss: torch.Tensor, known: float, gradients: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
    assert loss.item() == pytest.approx(known, rel=1e-5)
    loss.backward()
    for leaf, gradient in gradients:
        torch.testing.assert_close(leaf.grad, gradient, rtol=1e-4, atol=1e-4 * gradient.abs().max().item())


# Golden values


@pytest.mark.parametrize("case", range(3))
def test_nt_xent_golden(golden, device, case):
    g = golden(f"nt_xent_{case}", device)
    z_i, z_j = g["z_i"].requires_grad_(), g["z_j"].requires_grad_()
    agrees(NTXentLoss(g["temperature"])(z_i, z_j), g["loss"], [(z_i, g["grad_z_i"]), (z_j, g["grad_z_j"])])


@pytest.mark.parametrize("case", range(3))
def test_cibhash_golden(golden, device, case):
    g = golden(f"cibhash_{case}", device)
    i, j = g["logits_i"].requires_grad_(), g["logits_j"].requires_grad_()
    terms = CIBHashLoss(g["temperature"], g["kl_weight"])(i, j)
    assert terms["contrastive"].item() == pytest.approx(g["contrastive"], rel=1e-5)
    assert terms["kl"].item() == pytest.approx(g["kl"], rel=1e-5)
    agrees(terms["loss"], g["loss"], [(i, g["grad_logits_i"]), (j, g["grad_logits_j"])])


@pytest.mark.parametrize("case", range(3))
@pytest.mark.parametrize("variant", range(4))
def test_brcd_golden(golden, device, case, variant):
    g = golden(f"brcd_{case}_{variant}", device)
    student = g["student"].requires_grad_()
    loss = BRCDLoss(g["temperature"], g["alpha"], g["drop_same_cluster_negatives"])
    value = loss(student, g["teacher_i"], g["teacher_j"], g["cluster_i"], g["cluster_j"], g["bit_mask"])
    agrees(value, g["loss"], [(student, g["grad_student"])])


# Loops over pairs


def loop_nt_xent(z_i: torch.Tensor, z_j: torch.Tensor, temperature: float) -> float:
    rows, batch, total = torch.cat([z_i, z_j]), len(z_i), 0.0
    for r in range(2 * batch):
        positive = math.exp(cos(rows[r], rows[(r + batch) % (2 * batch)]) / temperature)
        everything = sum(math.exp(cos(rows[r], rows[s]) / temperature) for s in range(2 * batch) if s != r)
        total -= math.log(positive / everything)
    return total / (2 * batch)


@QUICK
@given(shapes)
def test_nt_xent_is_its_loop(shape):
    batch, bits, seed = shape
    z_i, z_j = reals(2, batch, bits, seed=seed)
    assert NTXentLoss(0.3)(z_i, z_j).item() == pytest.approx(loop_nt_xent(z_i, z_j, 0.3), rel=1e-4)


def loop_brcd(z, t_i, t_j, c_i, c_j, mask, temperature, alpha, drop) -> float:
    batch = len(z)
    rows, masks = [*z, *t_j], [*mask, *mask]

    def contrast(r, s):
        return cos(masks[r] * rows[r], masks[s] * rows[s])

    cluster = c_i.tolist() + c_j.tolist()
    total = 0.0
    for r in range(2 * batch):
        i = r % batch
        a = 1.0 if c_i[i] != c_j[i] else alpha
        positive = a * cos(z[i], t_i[i]) + (1 - a) * cos(mask[i] * z[i], mask[i] * t_j[i])
        others = [s for s in range(2 * batch) if s % batch != i and not (drop and cluster[s] == cluster[r])]
        everything = [positive, *(contrast(r, s) for s in others)]
        total -= positive / temperature - math.log(sum(math.exp(c / temperature) for c in everything))
    return total / (2 * batch)


@QUICK
@given(shapes, st.floats(0, 1), st.booleans())
def test_brcd_is_its_loop(shape, alpha, drop):
    batch, bits, seed = shape
    z, t_i, t_j = codes(3, batch, bits, seed=seed)
    mask = (codes(batch, bits, seed=seed + 1) + 1) / 2
    c_i, c_j = torch.randint(0, 3, (2, batch), generator=torch.Generator().manual_seed(seed))
    known = loop_brcd(z, t_i, t_j, c_i, c_j, mask, 0.3, alpha, drop)
    loss = BRCDLoss(0.3, alpha, drop)
    assert loss(z, t_i, t_j, c_i, c_j, mask).item() == pytest.approx(known, rel=1e-4, abs=1e-5)


def test_a_row_that_is_masked_whole_has_a_finite_gradient():
    z, t_i, t_j = codes(3, 6, 8)
    cluster = torch.arange(6)
    BRCDLoss()(z.requires_grad_(), t_i, t_j, cluster, cluster, torch.zeros(6, 8)).backward()
    assert z.grad.isfinite().all() and z.grad.any()


@QUICK
@given(shapes)
def test_bernoulli_kl_is_its_loop(shape):
    batch, bits, seed = shape
    a, b = reals(2, batch, bits, seed=seed)
    total = 0.0
    for p, q in zip(torch.sigmoid(a).flatten().tolist(), torch.sigmoid(b).flatten().tolist(), strict=True):
        total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert bernoulli_kl(a, b).item() == pytest.approx(total / batch, rel=1e-3, abs=1e-5)


# Closed forms


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_nt_xent_of_equal_codes(batch):
    same = torch.ones(batch, 16)
    assert NTXentLoss(0.3)(same, same).item() == pytest.approx(math.log(2 * batch - 1), rel=1e-5)


@pytest.mark.parametrize("batch", [2, 5, 64])
def test_brcd_of_equal_codes(batch):
    same, cluster = torch.ones(batch, 16), torch.arange(batch)
    loss = BRCDLoss(0.3, 0.8)(same, same, same, cluster, cluster, same)
    assert loss.item() == pytest.approx(math.log(2 * batch - 1), rel=1e-5)


def test_brcd_with_no_negative_left_is_zero():
    z, t_i, t_j = codes(3, 6, 16)
    one = torch.zeros(6, dtype=torch.long)
    assert BRCDLoss(0.3, 0.8)(z, t_i, t_j, one, one, torch.ones(6, 16)).item() == pytest.approx(0, abs=1e-6)


def test_brcd_without_clusters_or_mask_is_nt_xent_of_the_structural_part():
    z, t_i, t_j = codes(3, 6, 16)
    cluster = torch.arange(6)
    loss = BRCDLoss(0.3, alpha=0.0)(z, t_i, t_j, cluster, cluster, torch.ones(6, 16))
    assert loss.item() == pytest.approx(NTXentLoss(0.3)(z, t_j).item(), rel=1e-6)


def test_an_offset_augmentation_loses_the_structural_part():
    z, t_i, t_j = codes(3, 6, 16)
    apart, elsewhere, ones = torch.arange(6), torch.arange(6) + 10, torch.ones(6, 16)
    offset = BRCDLoss(0.3, alpha=0.2)(z, t_i, t_j, apart, elsewhere, ones)
    individual = BRCDLoss(0.3, alpha=1.0)(z, t_i, t_j, apart, apart, ones)
    assert offset.item() == pytest.approx(individual.item(), rel=1e-6)


def test_kl_of_equal_logits_is_zero_and_its_second_argument_gets_no_gradient():
    logits = reals(4, 8).requires_grad_()
    terms = CIBHashLoss()(logits, logits.detach().clone())
    assert terms["kl"].item() == pytest.approx(0, abs=1e-7)
    terms["kl"].backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-7, rtol=0)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[80.0, -80.0, 0.0, 500.0]] * 2, requires_grad=True)
    terms = CIBHashLoss(kl_weight=1.0)(logits, -logits.detach())
    terms["loss"].backward()
    assert math.isfinite(terms["loss"].item()) and torch.isfinite(logits.grad).all()


# Binarizing


def test_binarize_signs_zero_as_plus_one_and_passes_the_sigmoids_gradient():
    logits = torch.tensor([[-2.0, -0.0, 0.0, 3.0]], requires_grad=True)
    z = binarize(logits)
    assert z.tolist() == [[-1.0, 1.0, 1.0, 1.0]]
    z.sum().backward()
    p = torch.sigmoid(logits.detach())
    torch.testing.assert_close(logits.grad, p * (1 - p))


# Properties


@QUICK
@given(shapes)
def test_nt_xent_is_symmetric_and_ignores_the_images_order(shape):
    batch, bits, seed = shape
    z_i, z_j = reals(2, batch, bits, seed=seed)
    order = shuffled(batch, seed)
    value = NTXentLoss(0.5)(z_i, z_j).item()
    assert NTXentLoss(0.5)(z_j, z_i).item() == pytest.approx(value, rel=1e-5)
    assert NTXentLoss(0.5)(z_i[order], z_j[order]).item() == pytest.approx(value, rel=1e-5)


@QUICK
@given(shapes)
def test_brcd_ignores_the_order_of_images_and_bits_and_the_clusters_names(shape):
    batch, bits, seed = shape
    z, t_i, t_j = codes(3, batch, bits, seed=seed)
    mask = (codes(batch, bits, seed=seed + 1) + 1) / 2
    c_i, c_j = torch.randint(0, 3, (2, batch), generator=torch.Generator().manual_seed(seed))
    rows, columns, loss = shuffled(batch, seed), shuffled(bits, seed + 1), BRCDLoss(0.3, 0.8)
    moved = [t[rows][:, columns] for t in (z, t_i, t_j)]
    value = loss(z, t_i, t_j, c_i, c_j, mask).item()
    other = loss(*moved, 7 - c_i[rows], 7 - c_j[rows], mask[rows][:, columns]).item()
    assert other == pytest.approx(value, rel=1e-4, abs=1e-5)


@QUICK
@given(shapes)
def test_masked_bits_carry_no_gradient_of_the_structural_part(shape):
    batch, bits, seed = shape
    z, t_i, t_j = codes(3, batch, bits, seed=seed)
    z.requires_grad_()
    mask = (codes(batch, bits, seed=seed + 1) + 1) / 2
    cluster = torch.arange(batch)
    BRCDLoss(0.3, alpha=0.0)(z, t_i, t_j, cluster, cluster, mask).backward()
    assert (z.grad[mask == 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_loss_takes_float32_and_bfloat16(device, dtype):
    a, b = reals(2, 8, 16).to(device, dtype)
    cluster = torch.arange(8, device=device) % 3
    values = {
        "nt_xent": NTXentLoss()(a, b),
        "cibhash": CIBHashLoss()(a, b)["loss"],
        "brcd": BRCDLoss()(binarize(a), binarize(b), binarize(b), cluster, cluster, torch.ones_like(a)),
    }
    a32, b32 = a.float(), b.float()
    exact = {
        "nt_xent": NTXentLoss()(a32, b32),
        "cibhash": CIBHashLoss()(a32, b32)["loss"],
        "brcd": BRCDLoss()(binarize(a32), binarize(b32), binarize(b32), cluster, cluster, torch.ones_like(a32)),
    }
    for name, value in values.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact[name].item(), rel=1e-3), name


def test_numeric_gradients():
    a, b = reals(2, 5, 7).double()
    a.requires_grad_()
    # The losses compute in float32, so the numeric step is coarse and the bound as well.
    for loss in (lambda x: NTXentLoss(0.3)(x, b), lambda x: bernoulli_kl(x, b)):
        (gradient,) = torch.autograd.grad(loss(a), a)
        step = 1e-2
        for place in [(0, 0), (2, 3), (4, 6)]:
            moved = a.detach().clone()
            moved[place] += step
            up = loss(moved).item()
            moved[place] -= 2 * step
            assert (up - loss(moved).item()) / (2 * step) == pytest.approx(gradient[place].item(), rel=0.05, abs=2e-3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NTXentLoss(0),
        lambda: NTXentLoss(-1),
        lambda: CIBHashLoss(kl_weight=-1),
        lambda: BRCDLoss(temperature=0),
        lambda: BRCDLoss(alpha=1.5),
        lambda: BRCDLoss(hardness=-1),
    ],
)
def test_constructors_refuse_nonsense(make):
    with pytest.raises(ValueError, match="it must"):
        make()


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        NTXentLoss()(torch.ones(3, 4), torch.ones(4, 4))
    with pytest.raises(ValueError, match="one shape"):
        BRCDLoss()(*torch.ones(3, 4, 8), torch.zeros(4), torch.zeros(4), torch.ones(8))
