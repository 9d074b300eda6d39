"""Clusters and bit masks on codes made by hand."""

from itertools import pairwise

import numpy as np
import pytest

from losses.masks import bit_masks, choose_clusters, cluster_codes, cluster_means, purity
from retrieval.codes import read_training_codes, write_training_codes
from scripts.clusters import elbow_and_silhouette
from scripts.redundancy import redundancy
from utils.errors import UserError

#          undecided: bit 2 of the first group, bit 0 of the second
GROUPS = np.array(
    [
        [1, 1, 1, -1],
        [1, 1, -1, -1],
        [1, 1, 1, -1],
        [1, 1, -1, -1],
        [-1, -1, 1, 1],
        [1, -1, 1, 1],
        [-1, -1, 1, 1],
        [1, -1, 1, 1],
    ],
    dtype=np.int8,
)


def test_clusters_find_the_groups():
    labels, centroids = cluster_codes(GROUPS, 2, seed=0)
    assert len(set(labels[:4])) == len(set(labels[4:])) == 1 and labels[0] != labels[4]
    np.testing.assert_allclose(centroids[labels[0]], [1, 1, 0, -1], atol=1e-6)
    np.testing.assert_allclose(centroids[labels[4]], [0, -1, 1, 1], atol=1e-6)


def test_clusters_depend_on_the_seed_alone():
    codes = np.sign(np.random.RandomState(0).randn(200, 16))
    first, second = cluster_codes(codes, 7, seed=3), cluster_codes(codes, 7, seed=3)
    assert (first[0] == second[0]).all() and (first[1] == second[1]).all()


def test_masks_drop_the_undecided_bits():
    labels = np.repeat([0, 1], 4)
    assert bit_masks(GROUPS, labels, 2, margin=0.5).tolist() == [[1, 1, 0, 1], [0, 1, 1, 1]]
    assert bit_masks(GROUPS, labels, 2, margin=0.5, rule="undecided").tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("margin, kept", [(0.0, [1, 1, 1]), (0.5, [1, 1, 0]), (0.51, [1, 0, 0]), (1.0, [1, 0, 0])])
def test_a_mean_equal_to_the_margin_is_kept(margin, kept):
    codes = np.array([[1, 1, 1], [1, 1, -1], [1, 1, 1], [1, -1, -1]])  # means 1, 0.5, 0
    assert bit_masks(codes, np.zeros(4, dtype=int), 1, margin).tolist() == [kept]


def test_an_empty_cluster_keeps_nothing():
    masks = bit_masks(GROUPS, np.zeros(8, dtype=int), 3, margin=0.0, rule="decided")
    assert masks[0].all() and not masks[1:].any()


def test_means_are_their_loop():
    codes = np.sign(np.random.RandomState(1).randn(30, 5))
    labels = np.random.RandomState(2).randint(0, 3, 30)
    for c in range(3):
        np.testing.assert_allclose(cluster_means(codes, labels, 3)[c], codes[labels == c].mean(axis=0))


def test_training_codes_are_kept(tmp_path):
    write_training_codes(tmp_path, GROUPS)
    assert (read_training_codes(tmp_path) == GROUPS).all()
    with pytest.raises(UserError, match="finished run"):
        read_training_codes(tmp_path / "none")


def test_redundancy_is_the_share_of_undecided_bits():
    found = redundancy(GROUPS, np.repeat([0, 1], 4), 2, margin=0.5)
    assert found["below_margin"] == 2 / 8 and found["mean"] == 6 / 8


def test_purity():
    assert purity(np.array([0, 0, 0, 1, 1]), np.array([2, 2, 1, 0, 0])) == pytest.approx(4 / 5)


def test_elbow_falls_and_silhouette_peaks_at_the_true_number():
    draw = np.random.RandomState(0)
    centres = np.sign(draw.randn(4, 32))
    codes = centres[np.repeat(np.arange(4), 30)] * np.where(draw.rand(120, 32) < 0.03, -1, 1)
    rows = [elbow_and_silhouette(codes, k) for k in (2, 3, 4, 5, 6)]
    assert all(a["inertia"] > b["inertia"] for a, b in pairwise(rows))
    assert max(rows, key=lambda r: r["silhouette"])["clusters"] == 4


@pytest.mark.parametrize("true", [5, 20])
def test_the_number_of_clusters_is_found_without_labels(true):
    draw = np.random.RandomState(0)
    centres = np.sign(draw.randn(true, 64))
    codes = centres[np.repeat(np.arange(true), 300 // true)] * np.where(draw.rand(300, 64) < 0.1, -1, 1)
    assert choose_clusters(codes) == true == choose_clusters(codes, seed=1)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cluster_codes(GROUPS, 9), "number of training images, 8"),
        (lambda: cluster_codes(GROUPS, 0), "from 1 to"),
        (lambda: cluster_codes(np.ones((20, 4)), 5), "only 1 different"),
        (lambda: choose_clusters(np.ones((20, 4))), "--clusters auto: the teacher gives only 1 different"),
        (lambda: bit_masks(GROUPS, np.zeros(8, dtype=int), 1, margin=1.5), "--margin 1.5"),
        (lambda: bit_masks(GROUPS, np.zeros(8, dtype=int), 1, 0.5, rule="best"), "--mask-rule best"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(UserError, match=words):
        call()
