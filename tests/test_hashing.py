"""Hashing objectives beside CIBHash."""

import numpy as np
import pytest
import torch
from test_losses import cos, reals

from losses.bihalf import BiHalfLoss, _HalfHalf
from losses.greedyhash import GreedyHashLoss
from losses.hashing import HASHING
from models.itq import itq_head
from utils.errors import UserError


def test_bihalf_gives_each_bit_to_half_of_the_batch(device):
    logits = reals(10, 7).to(device)
    codes = _HalfHalf.apply(logits, 6.0)
    assert (codes.sum(dim=0) == 0).all()
    for bit in range(7):
        assert logits[codes[:, bit] > 0, bit].min() > logits[codes[:, bit] < 0, bit].max()


def test_bihalf_gradient_is_the_codes_plus_the_pull():
    logits = reals(6, 4).requires_grad_()
    weight = reals(6, 4, seed=1)
    codes = _HalfHalf.apply(logits, 6.0)
    (codes * weight).sum().backward()
    torch.testing.assert_close(logits.grad, weight + 6 * (logits.detach() - codes) / 24)


@pytest.mark.parametrize("kind", [BiHalfLoss, GreedyHashLoss])
def test_similarity_term_is_its_loop(kind):
    logits, features = reals(6, 8), reals(6, 20, seed=1)
    z = _HalfHalf.apply(logits, 6.0) if kind is BiHalfLoss else torch.where(logits >= 0, 1.0, -1.0)
    known = np.mean([(cos(z[i], z[j]) - cos(features[i], features[j])) ** 2 for i in range(6) for j in range(6)])
    terms = kind()(logits, features)
    assert terms.get("similarity", terms["loss"]).item() == pytest.approx(known, rel=1e-4)


def test_greedyhash_quantisation_and_gradient():
    logits = torch.tensor([[2.0, -1.0, 0.0]] * 2, requires_grad=True)
    terms = GreedyHashLoss(penalty=0.5)(logits, reals(2, 5))
    assert terms["quantisation"].item() == pytest.approx((1 + 0 + 1) / 3)
    assert terms["loss"].item() == pytest.approx(terms["similarity"].item() + 0.5 * terms["quantisation"].item())
    terms["loss"].backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.abs().sum() > 0


def test_itq_codes_are_the_rotated_principal_components_signs():
    features = reals(300, 12) @ reals(12, 12, seed=1) + 3
    head = itq_head(features, 6, seed=0)
    weight = head.layers[0].weight  # orthonormal rows: a rotation of the principal axes
    torch.testing.assert_close(weight @ weight.T, torch.eye(6), atol=1e-4, rtol=0)
    centred = features - features.mean(dim=0)
    axes = torch.linalg.svd(centred.double(), full_matrices=False).Vh[:6].float()
    torch.testing.assert_close(axes.T @ (axes @ weight.T), weight.T, atol=1e-4, rtol=0)  # in their span
    torch.testing.assert_close(head(features), centred @ weight.T, atol=1e-3, rtol=1e-3)

    def error(h):
        out = h(features)
        return (out - out.sign()).pow(2).mean()

    plain = itq_head(features, 6, seed=0)
    plain.layers[0].weight.data.copy_(axes)
    plain.layers[0].bias.data.copy_(-(axes @ features.mean(dim=0)))
    assert error(head) < error(plain)
    with pytest.raises(UserError, match="at most 12 bits"):
        itq_head(features, 13)


@pytest.mark.parametrize("make", [lambda: BiHalfLoss(-1), lambda: GreedyHashLoss(-1)])
def test_constructors_refuse_nonsense(make):
    with pytest.raises(ValueError, match="not be negative"):
        make()


def test_every_objective_takes_two_views(device):
    for build in HASHING.values():
        logits = reals(2, 5, 8).to(device).requires_grad_()
        features = reals(2, 5, 20, seed=1).to(device)
        build(temperature=0.3, kl_weight=0.001)(logits, features)["loss"].backward()
        assert logits.grad.abs().sum() > 0
