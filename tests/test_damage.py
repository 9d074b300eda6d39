"""Damaged files of every kind: the right value, one that could have been meant, or one line that names the file."""

import argparse
import json
import tarfile
import time
import warnings
from pathlib import Path

import damage
import numpy as np
import pandas as pd
import pytest
import torch
from damage import Reader, look
from exports import write_export
from PIL import Image
from test_report import result
from test_shards import png, tar_of

import distill
import evaluate
import train_teacher
from data import lists, shards, sources
from data.load import input_parser
from losses.masks import cluster_codes
from models import exported, heads, trained
from retrieval import codes, hasher, tables
from scripts import redundancy, report
from utils import cache, errors, runs, training

INPUTS, SEED = 50, 14  # of those tried, the seed that noticed most when checks were taken out of readers
DIM, BITS, IMAGES, EPOCHS = 64, 16, 300, 3
OVERRIDES = argparse.Namespace(dataset=None, data_dir=None, cache_dir=None, lists_dir=None, device=None)


def random(*size: int, seed: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def make_files(folder: Path) -> None:
    """Valid ones, two of each kind."""
    write_run(folder / "teacher", train_teacher, 9, {"role": "teacher"}, "map")
    facts = {"role": "student", "teacher": trained.read_teacher(folder / "teacher").head_hash}
    for number in range(2):
        draw = np.random.RandomState(number)
        for ending in ("png", "jpg"):
            Image.fromarray(draw.randint(0, 256, (18, 24, 3)).astype(np.uint8)).save(folder / f"{number}.{ending}")
        names, labels = [f"{number}/{i}.jpg" for i in range(12)], draw.randint(0, 2, (12, 4))
        pd.DataFrame(labels, columns=[*"abcd"]).assign(path=names).to_csv(folder / f"list{number}.csv", index=False)
        pd.DataFrame({"path": names, "labels": labels.tolist()}).to_parquet(folder / f"list{number}.parquet")
        rows = [" ".join(map(str, row)) for row in labels]
        (folder / f"{number}_list.txt").write_text("".join(map("{} {}\n".format, names, rows)))
        (folder / f"{number}_img.txt").write_text("\n".join(names))
        (folder / f"{number}_label_onehot.txt").write_text("\n".join(rows))
        (folder / f"shards{number}").mkdir()
        for part in ("train", "test"):
            members = {f"{i}.png": png(10 * len(part) + 50 * number + i) for i in range(4)}
            members |= {f"{i}.cls": b"%d" % (i % 3) for i in range(4)}
            tar_of(folder / f"shards{number}" / f"{part}-0.tar", members)
        write_export(folder / f"export{number}", BITS, seed=number)
        result(folder, seed=number)
        cached(folder / f"cache{number}" / "entry" / "file", number)
        fitted(folder / f"begun{number}" / "last.pt", number)
        words = ("--teacher", str(folder / "teacher"))
        write_run(folder / f"run{number}", distill, number, facts, "sshp", "ashp", words=words)


def run_of(command, folder: Path, *words: str) -> runs.Run:
    parser = command.make_parser()
    return runs.Run(parser.parse_args(["--run-dir", str(folder), "--resume", *words]), parser)


def write_run(folder: Path, command, seed: int, facts: dict, *metrics: str, words=()) -> None:
    """A finished one, as its command leaves it."""
    run, signs = run_of(command, folder, *words, "--seed", str(seed)), random(IMAGES, BITS, seed=seed).sign()
    facts = {"backbone": {"name": "efficientnet_lite0", "features": "logits", "sha256": ""}, "data": "", **facts}
    for number, metric in enumerate(metrics):
        heads.save_head(run.path(f"best_{metric}.pt"), heads.HashHead(DIM, BITS, seed=seed + number), **facts)
    codes.write_training_codes(folder, signs)
    labels, centroids = cluster_codes(signs, 3)
    np.savez(folder / "clusters.npz", labels=labels, centroids=centroids)
    run.rows = [{"epoch": 1, "loss": 2.5 + seed}, {"epoch": 2, "loss": 1.25, metrics[0]: 0.5}]
    run.write_log()
    run.finish({"best": {m: {"value": 0.5, "epoch": 2} for m in metrics}, "epochs": 2, "seconds": seed})


def read_image(file: Path) -> torch.Tensor:
    image = sources.decode(file)
    assert image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel()
    return image


def read_list(file: Path) -> dict:
    one = lists.read_list(file.with_name(file.name.replace("label_onehot", "img")))
    assert one.labels.dtype == np.uint8 and one.labels.shape[1] == len(one.classes or one.labels[0]) and one.labels.size
    assert len({*one.names} - {"", "."}) == len(one) and set(np.unique(one.labels)) <= {0, 1}
    return vars(one)


def read_shards(file: Path) -> tuple:
    images, data, at = shards.load(file.parent), file.read_bytes(), 0
    while any(head := data[at : at + 512]):  # heads have checksums, and a tar an end: a strict reader would refuse it
        at += 512 + -(-tarfile.TarInfo.frombuf(head, "utf-8", "strict").size // 512) * 512
    assert len(data) >= at + 1024 and not any(data[at:]) and images.labels.any(axis=1).all()
    return images.labels, images.source.names, images.source.places, images.train, images.test


def read_head(file: Path) -> dict:
    head, facts = heads.load_head(file)
    assert all(tensor.isfinite().all() for tensor in head.state_dict().values())
    return facts


def fitted(file: Path, seed: int = 0) -> tuple:
    """What training ends with: out of last.pt, where that has all epochs."""
    head = heads.HashHead(DIM, BITS, seed=seed)
    optimizer, run = torch.optim.Adam(head.parameters()), run_of(train_teacher, file.parent)

    def steps(epoch: int) -> list[dict]:
        return [{"loss": head(random(4, DIM, seed=epoch)).pow(2).mean()}]

    schedule = training.Schedule(EPOCHS, 1, 5)
    summary = training.fit(run, head, optimizer, steps, lambda: {"map": 0.5}, lambda *_: None, schedule)
    assert summary["epochs"] == EPOCHS and all(tensor.isfinite().all() for tensor in head.state_dict().values())
    return head.state_dict(), optimizer.state_dict()["state"], summary["best"]


def read_student(file: Path) -> tuple:
    """As evaluate.py reads a run before it opens any image."""
    run = trained.read_run(file.parent)
    options = vars(hasher.run_options(OVERRIDES, run))
    assert all(isinstance(options[name], str | int | float | Path | None) for name in input_parser().defaults())
    states = [head.state_dict() for one in (run, run.teacher) for head in one.heads.values()]
    return options, evaluate.named_options(run), run.size, run.bits, states


def read_records(file: Path) -> tuple:
    """Arguments, environments, summaries and logs of a student and its teacher, as scripts.report collects them."""
    report.write_records(pd.DataFrame({"file": [file.with_name("test.json")]}), file.parent)
    student, teacher = map(json.loads, file.with_name("runs.jsonl").read_text().splitlines())
    assert isinstance(student["best"], dict) and isinstance(student["environment"]["command"], str)
    return student, teacher, file.with_name("logs.csv").read_text()


def read_clusters(file: Path) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redundancy, "draw_redundancy", lambda *_: None)  # a figure takes longer than all the rest
        patch.setattr("sys.argv", ["redundancy", "--run", str(file.parent)])
        redundancy.main()
    return json.loads(file.with_name("redundancy.json").read_text())


def cached(file: Path, seed: int = 0) -> None:
    cache.Entry.checked.clear()  # by size and time, which the inputs of one moment have in common
    rows, entries = random(40, DIM, seed=seed), cache.FeatureCache(file.parent.parent)
    found = entries.get({"kind": "test"}, 40, DIM, lambda first: rows[first:].split(16), "test")
    assert np.array_equal(found, rows.numpy().astype(found.dtype))


def read_results(file: Path) -> tuple:
    rows = tables.read_rows([file, file.parents[1] / f"brcd_{BITS}_1" / file.name])
    numbers = rows[["map", "ndcg", "map_all"]].to_numpy().ravel().tolist()
    assert all(type(number) in (int, float) and 0 <= number <= 1 for number in numbers)
    texts = [(tables.title_of(one, False), tables.table_of(one, ["map"])) for one in tables.tables_of(rows)]
    return str(texts), rows.to_dict("list"), report.precision_recall(rows)


def read_export(file: Path) -> tuple:
    model = exported.Exported(file.parent)
    code = model.code(np.arange(18 * 24 * 3, dtype=np.uint8).reshape(18, 24, 3))
    assert len(code) == -(-model.bits // 8)
    return model.card, code, file.with_name("model.onnx").read_bytes()


READERS = [
    Reader("{}.png", read_image, exact=True),
    Reader("{}.jpg", read_image),
    *(Reader(f"{{}}_{name}.txt", read_list) for name in ("list", "img", "label_onehot")),
    *(Reader(f"list{{}}.{ending}", read_list) for ending in ("csv", "parquet")),
    Reader("shards{}/train-0.tar", read_shards),
    Reader("run{}/best_sshp.pt", read_head, exact=True),
    Reader("begun{}/last.pt", fitted, exact=True),
    *(Reader(f"run{{}}/{name}", read_student) for name in ("args.yaml", "defaults.json")),
    *(Reader(f"run{{}}/{name}", read_records) for name in ("environment.json", "summary.json", "log.csv")),
    Reader("run{}/train_codes.npz", lambda file: codes.read_training_codes(file.parent), exact=True),
    Reader("run{}/clusters.npz", read_clusters, exact=True),
    *(Reader(f"cache{{}}/*/{name}", cached) for name in ("features.bin", "rows.json")),
    Reader(f"brcd_{BITS}_{{}}/test.json", read_results),
    Reader("export{}/card.json", read_export),
    Reader("export{}/model.onnx", read_export, exact=True),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    make_files(folder := tmp_path_factory.mktemp("files"))
    return folder


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.file.format(0))
def test_a_damaged_file_is_read_right_or_refused_in_one_line(folder, reader):
    tally, found = look(reader, folder, INPUTS, SEED)
    assert not found and tally["inputs"] >= INPUTS / 2 and tally["refused"], found or tally


# The judge: one that calls everything right would find nothing.


def refusing(file: Path, message: str) -> None:
    if file.read_bytes() != b"good0":
        raise errors.UserError(message.format(file))


FAULTS = {  # of readers; "" where there is none
    "ValueError in test_damage.py": (lambda file: int(file.read_bytes()[4:]),),
    "where a checksum could tell": (Path.read_bytes, True),
    "not one line that names the file": (lambda file: refusing(file, "damaged"),),
    "SystemExit in damage.py, ring": (lambda file: time.sleep(0 if file.read_bytes() == b"good0" else 5),),
    "a warning: odd": (lambda file: file.read_bytes() == b"good0" or warnings.warn("odd", stacklevel=1),),
    "": (lambda file: refusing(file, "{}: damaged"),),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_judge_finds_the_faults_of_readers(tmp_path, monkeypatch, fault):
    monkeypatch.setattr(damage, "SECONDS", 0.05 if "ring" in fault else damage.SECONDS)
    for number in range(2):
        (tmp_path / f"good{number}").write_bytes(b"good%d" % number)
    tally, found = look(Reader("good{}", *FAULTS[fault]), tmp_path, INPUTS, SEED)
    assert tally["finding" if fault else "refused"] > 5
    assert len(found) == tally["finding"] and all(fault and fault in what for what, *_ in found)
