"""mAP and its companions against plain loops over sorted lists; every order of ties enumerated where that is small."""

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.alignment import agreement, match_bits
from retrieval.codes import hamming_topk, pack, unpack
from retrieval.metrics import DENOMINATORS, TIES, mean_average_precision, ndcg, per_label_precision, retrieval_report

cases = st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 10**6))


def draw(n_database: int, bits: int, seed: int, n_queries: int = 2, labels: int = 3):
    r = np.random.RandomState(seed)
    query, database = r.choice([-1, 1], (n_queries, bits)), r.choice([-1, 1], (n_database, bits))
    q_labels, d_labels = r.randint(0, 2, (n_queries, labels)), r.randint(0, 2, (n_database, labels))
    q_labels[0, 0] = d_labels[seed % n_database, 0] = 1  # something is relevant to somebody
    return query, database, q_labels, d_labels


def plain_ap(relevant: list[int], k: int, n_relevant: int, denominator: str) -> float:
    gain, hits = 0.0, 0
    for rank, is_relevant in enumerate(relevant[:k], start=1):
        if is_relevant:
            hits += 1
            gain += hits / rank
    divide_by = {"retrieved": hits, "min": min(k, n_relevant), "total": n_relevant}[denominator]
    return gain / divide_by if divide_by else 0.0


def plain_map(query, database, q_labels, d_labels, k, denominator, ties) -> float:
    total = 0.0
    for q in range(len(query)):
        distance = [int(np.sum(query[q] != row)) for row in database]
        relevant = [int(np.any(q_labels[q] & row)) for row in d_labels]
        if ties == "stable":
            orders = [sorted(range(len(database)), key=lambda i: distance[i])]
        else:
            orders = [sorted(p, key=lambda i: distance[i]) for p in itertools.permutations(range(len(database)))]
        total += np.mean([plain_ap([relevant[i] for i in o], k, sum(relevant), denominator) for o in orders])
    return total / len(query)


@settings(deadline=None, max_examples=60)
@given(cases, st.sampled_from(DENOMINATORS), st.sampled_from(TIES))
def test_map_is_its_plain_loop(case, denominator, ties):
    n, bits, k, seed = case
    data = draw(n, bits, seed)
    known = plain_map(*data, min(k, n), denominator, ties)
    assert mean_average_precision(*data, k, denominator, ties) == pytest.approx(known, abs=1e-9)


@pytest.mark.parametrize("case", range(4))
def test_map_golden(golden, case):
    g = golden(f"map_{case}")
    value = mean_average_precision(
        g["query_codes"], g["database_codes"], g["query_labels"], g["database_labels"], g["topk"]
    )
    assert value == pytest.approx(g["map"], rel=1e-9)


def test_expected_ties_agree_with_shuffled_databases():
    r = np.random.RandomState(0)
    data = draw(300, 6, 1, n_queries=5)
    values = {d: [] for d in DENOMINATORS}
    for _ in range(300):
        order = r.permutation(300)
        for d in DENOMINATORS:
            values[d].append(mean_average_precision(data[0], data[1][order], data[2], data[3][order], 40, d))
    for d in DENOMINATORS:
        standard_error = np.std(values[d]) / np.sqrt(300)
        expected = mean_average_precision(*data, 40, d, "expected")
        assert abs(np.mean(values[d]) - expected) < 4 * standard_error + 1e-9


def test_class_numbers_and_one_hot_rows_mean_the_same():
    query, database, _, _ = draw(50, 8, 0, n_queries=6)
    q, d = np.random.RandomState(0).randint(0, 4, 6), np.random.RandomState(1).randint(0, 4, 50)
    by_number = mean_average_precision(query, database, q, d, 10)
    assert by_number == mean_average_precision(query, database, np.eye(4)[q], np.eye(4)[d], 10)
    assert by_number == mean_average_precision(
        torch.tensor(query), torch.tensor(database), torch.tensor(q), torch.tensor(d), 10
    )


def test_a_query_without_relevant_items_counts_zero():
    query, database = np.ones((2, 4)), np.ones((2, 4))
    for d, t in itertools.product(DENOMINATORS, TIES):
        assert mean_average_precision(query, database, np.array([[1, 0], [0, 1]]), [[0, 1]] * 2, 2, d, t) == 0.5


@pytest.mark.parametrize("ties", TIES)
def test_many_hits_are_counted(ties):
    n = 70_000  # more than 8 or 16 bits hold
    codes, labels = np.ones((n, 8), np.int8), np.ones((n, 1), np.uint8)
    assert mean_average_precision(codes[:1], codes, labels[:1], labels, n, "total", ties) == pytest.approx(1)


@pytest.mark.parametrize("bits", [1, 7, 12, 64, 300])
def test_report_holds_what_the_single_functions_give(bits):
    data = draw(200, bits, bits, n_queries=9)
    report = retrieval_report(*data, 20)
    for key, value in report["map"].items():
        ties, denominator = key.split("/")
        assert value == pytest.approx(mean_average_precision(*data, 20, denominator, ties), abs=1e-12)
    assert report["map_all"] == pytest.approx(mean_average_precision(*data, 200, "total", "expected"), abs=1e-12)

    query, database, q_labels, d_labels = data
    distance = (query[:, None] != database[None]).sum(axis=2)
    relevant = (q_labels @ d_labels.T) > 0
    order = distance.argsort(axis=1, kind="stable")[:, :20]
    assert report["precision_at"]["10"] == pytest.approx(np.take_along_axis(relevant, order, 1)[:, :10].mean())
    near = distance <= 2
    inside = [relevant[q][near[q]].mean() if near[q].any() else 0.0 for q in range(9)]
    assert report["precision_radius_2"] == pytest.approx(np.mean(inside))
    curve, radius = report["precision_recall"], min(2, bits)
    answered = [value for q, value in enumerate(inside) if near[q].any()]
    assert curve["answered"][radius] == pytest.approx(len(answered) / 9)
    assert curve["precision"][radius] == pytest.approx(np.mean(answered) if answered else 0.0)
    assert report["precision_recall"]["recall"][-1] == pytest.approx(
        1.0 if relevant.any(axis=1).all() else relevant.any(axis=1).mean()
    )


@settings(deadline=None, max_examples=30)
@given(cases)
def test_ndcg_and_per_label_precision_are_their_loops(case):
    n, bits, k, seed = case
    query, database, q_labels, d_labels = draw(n, bits, seed, labels=4)
    k = min(k, n)
    _, order = hamming_topk(query, database, k)
    for q, value in enumerate(ndcg(order, q_labels, d_labels)):
        gains = [2 ** int((q_labels[q] & row).sum()) - 1 for row in d_labels]
        dcg = sum(gains[i] / np.log2(rank + 1) for rank, i in enumerate(order[q], 1))
        ideal = sum(g / np.log2(rank + 1) for rank, g in enumerate(sorted(gains, reverse=True)[:k], 1))
        assert value == pytest.approx(dcg / ideal if ideal else 0.0)
    for label, value in enumerate(per_label_precision(order, q_labels, d_labels)):
        shares = [np.mean([d_labels[i][label] for i in order[q]]) for q in range(2) if q_labels[q][label]]
        assert value is None if not shares else value == pytest.approx(np.mean(shares))


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 70), st.integers(0, 10**6))
def test_topk_is_a_stable_sort(n, bits, seed):
    query, database, _, _ = draw(n, bits, seed)
    k = 1 + seed % n
    distance = (query[:, None] != database[None]).sum(axis=2)
    order = distance.argsort(axis=1, kind="stable")[:, :k]
    distances, indices = hamming_topk(pack(query), pack(database), k)
    assert (hamming_topk(query, database, k)[1] == indices).all()  # unpacked codes are packed first
    assert (indices == order).all() and (distances == np.take_along_axis(distance, order, 1)).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 70), st.integers(0, 10**6))
def test_pack_and_unpack(bits, seed):
    codes = draw(5, bits, seed)[1]
    assert pack(codes).shape == (5, (bits + 7) // 8)
    assert (unpack(pack(codes), bits) == codes).all()


def test_pack_signs_zero_as_plus_one():
    assert pack(np.array([[0.0, -0.0, -1e-9, 1.0]])).tolist() == [[0b11010000]]


def test_what_people_have_means_the_same():
    query, database, _, _ = draw(40, 30, 0, n_queries=6)
    q, d = np.random.RandomState(0).randint(0, 4, 6), np.random.RandomState(1).randint(0, 4, 40)
    known = retrieval_report(query, database, q, d, 10)
    forms = [lambda x: x > 0, lambda x: (x > 0) * 1, lambda x: ((x > 0) * 1).astype(np.uint8), lambda x: x.tolist()]
    forms += [lambda x: torch.tensor(x).bfloat16(), lambda x: torch.tensor(x > 0), lambda x: x.astype(np.float16)]
    names = np.array(["bird", "cat", "dog", "frog"])
    labels = [lambda x: x, lambda x: x * 10**9, lambda x: names[x], lambda x: x.tolist(), lambda x: torch.tensor(x)]
    labels += [lambda x: np.eye(4)[x], lambda x: torch.eye(4)[x].bool(), lambda x: x - 2]
    for form, label in itertools.zip_longest(forms, labels, fillvalue=lambda x: x):
        found = retrieval_report(form(query), form(database), label(q), label(d), np.int64(10))
        assert found["map"] == known["map"] and found["ndcg"] == known["ndcg"]
        assert (hamming_topk(form(query), form(database), np.int32(5))[1] == known["indices"][:, :5]).all()


@pytest.mark.parametrize("measure", [mean_average_precision, retrieval_report])
@pytest.mark.parametrize(
    "change, said",
    [
        (lambda q, d, x, y: (q, 1 / (1 + np.exp(-d)), x, y), "database codes: all values must be in"),
        (lambda q, d, x, y: (q * 1.0 * np.nan, d, x, y), "query codes: all values must be in"),
        (lambda q, d, x, y: (q, pack(d), x, y), "packed codes are unpacked by"),
        (lambda q, d, x, y: (q[0], d, x, y), r"query codes: \[n, b\] is needed, not \[30\]"),
        (lambda q, d, x, y: (q[:, :28], d, x, y), "query codes have 28 bits, database codes 30"),
        (lambda q, d, x, y: (q, d, x[:-1], y), "6 query codes, and labels of 5"),
        (lambda q, d, x, y: (q, d, x, y[:-1]), "40 database codes, and labels of 39"),
        (lambda q, d, x, y: (q, d, x, np.concatenate([y, y])), "40 database codes, and labels of 80"),
        (lambda q, d, x, y: (q, d, 2 * x - 1, 2 * y - 1), "label rows: values must be 0 or 1"),
        (lambda q, d, x, y: (q, d, np.arange(6)[:, None], np.arange(40)[:, None]), "classes are of shape"),
        (lambda q, d, x, y: (q, d, x[:, :2], y), r"rows \[q, L\] and \[n, L\] are needed"),
        (lambda q, d, x, y: (q, d, x[:, 0] + 0.5, y[:, 0] * 1.0), "must be whole numbers"),
        (lambda q, d, x, y: (q, d, [7] * 6, [8] * 40), "no query shares a label"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(measure, change, said):
    with pytest.raises(ValueError, match=said):
        measure(*change(*draw(40, 30, 0, n_queries=6)), 10)


def test_bits_are_matched_to_the_teachers():
    teacher = draw(400, 24, 0)[1]
    order, sign = np.random.RandomState(1).permutation(24), np.random.RandomState(2).choice([-1, 1], 24)
    student = (teacher * sign)[:, order]  # the same bits in another order, some turned
    student[:40] *= -1  # a tenth of it noise
    before, chance = agreement(student, teacher), agreement(draw(400, 24, 5)[1], teacher)
    assert (
        before["equal_bits"] < 0.7 and abs(chance["bit_correlation"]) < 0.1 and abs(chance["equal_bits"] - 0.5) < 0.05
    )
    order, sign = match_bits(student, teacher)
    after = agreement(student[:, order] * sign, teacher)
    assert after["equal_bits"] == pytest.approx(0.9) and after["bit_correlation"] == pytest.approx(0.8, abs=0.02)
    shuffled = np.random.RandomState(3).permutation(400)
    assert agreement(student[shuffled], teacher[shuffled]) == before  # in every bit
    assert agreement(teacher, teacher) == {"equal_bits": 1.0, "bit_correlation": pytest.approx(1.0)}
    assert agreement(np.ones((5, 3)), teacher[:5, :3])["bit_correlation"] == 0


def test_the_readmes_lines_run_from_another_folder(tmp_path):
    (lines,) = re.findall(r"```python\n(import torch.*?)```", (ROOT / "README.md").read_text(), re.S)
    run = [sys.executable, "-c", lines]
    done = subprocess.run(
        run, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0 and 0 < float(done.stdout) <= 1, done.stderr


def test_refusals():
    data = draw(5, 8, 0)
    for probabilities in (np.full((2, 8), 0.3), np.full((2, 8), np.nan)):
        with pytest.raises(ValueError, match="all values must be"):
            pack(probabilities)
    with pytest.raises(ValueError, match="denominator"):
        mean_average_precision(*data, 3, "all")
    with pytest.raises(ValueError, match="at least 1"):
        mean_average_precision(*data, 0)
    with pytest.raises(ValueError, match="from 1 to"):
        hamming_topk(pack(data[0]), pack(data[1]), 6)
