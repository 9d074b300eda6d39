"""Every reader of the project beside valid files for it: what is mutated, how it is read, and what may come out."""

import argparse
import io
import json
import lzma
import math
import os
import sys
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import yaml
from exports import write_export
from PIL import Image

import distill
import evaluate
import train_teacher
from data import photos, shards
from data.lists import ImageList, read_list
from data.sources import decode
from losses.masks import bit_masks, cluster_codes
from models.heads import FORMAT, HashHead, load_head, save_head
from models.trained import read_run
from retrieval import adding, asking
from retrieval.codes import read_training_codes, write_training_codes
from retrieval.exported import KEYS, Exported
from retrieval.index import Index
from scripts import redundancy, report
from utils.cache import FeatureCache, entries, prune
from utils.checkpoints import read_checkpoint, save_atomically
from utils.files import write_json
from utils.runs import Run, read_environment
from utils.training import KIND, Schedule, fit

DIM, BITS, IMAGES, CLUSTERS = 8, 16, 30, 3
EPOCH = 3
FACTS = {"kind": "evaluation", "dataset": "digits", "size": 64}


def anything(value: object, folder: Path) -> bool:
    return True


@dataclass(frozen=True)
class Reader:
    """One way in.

    Attributes:
        file: what is mutated, a pattern below the case's folder.
        make: writes a valid case; (folder, variant), two variants differ in every content.
        read: folder -> value; equal values mean the same result.
        exact: the format holds checksums (or every value a check), so no change of bytes may pass with another result.
        valid: whether a value that differs from the unmutated file's is one that a careful user could have meant. A
            format without checksums cannot tell a changed digit from a meant one, but it can tell nonsense.
        edits: well-formed files of wrong contents; their checksums fit, so only ``valid`` judges what comes out.
        text: words are replaced too.
        swaps: another valid file of the kind in this one's place is read as what it is.
        named: words of which a refusal must hold one; None: the file's folder and its name.
    """

    name: str
    file: str
    make: Callable[[Path, int], None]
    read: Callable[[Path], object]
    exact: bool = False
    valid: Callable[[object, Path], bool] = anything
    edits: Callable[[Path], list[bytes]] | None = None
    text: bool = False
    swaps: bool = True
    named: Callable[[Path], list[str]] | None = None


# Images. PNG has a CRC for each chunk; the others have nothing over their pixels, so that another pixel is another
# picture: what is asked of them is a picture, or a refusal.


def pixels(variant: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(variant).randint(0, 256, (18, 24, channels)).astype(np.uint8).squeeze()


def image_case(ending: str, options: dict):
    def make(folder: Path, variant: int) -> None:
        channels = 3 if ending != "tiff" else 1 + 2 * variant
        Image.fromarray(pixels(variant, channels)).save(folder / f"image.{ending}", **options)

    def read(folder: Path) -> torch.Tensor:
        return decode(folder / f"image.{ending}")

    return make, read


def is_picture(image: torch.Tensor, folder: Path) -> bool:
    return image.dtype == torch.uint8 and image.ndim == 3 and image.shape[0] == 3 and image.numel() > 0


def image_readers() -> list[Reader]:
    formats = {"jpg": {"quality": 90}, "png": {}, "webp": {}, "gif": {}, "bmp": {}, "tiff": {}}
    return [
        Reader(f"image .{ending}", f"image.{ending}", *image_case(ending, options), ending == "png", is_picture)
        for ending, options in formats.items()
    ]


# Lists. xz has a CRC of everything; text and tables have none (pyarrow writes no page checksums unless asked), so an
# edited label passes, and so does a list cut between two lines.

NAMES = [[f"{folder}/{i:03d}.jpg" for i in range(12)] for folder in ("cats", "dogs")]
LABELS = [np.random.RandomState(v).randint(0, 2, (12, 4)) for v in range(2)]


def lines_of(variant: int) -> str:
    rows = zip(NAMES[variant], LABELS[variant], strict=True)
    return "".join(f"{name} {' '.join(map(str, row))}\n" for name, row in rows)


def write_text(folder: Path, variant: int) -> None:
    (folder / "train.txt").write_text(lines_of(variant))


def write_xz(folder: Path, variant: int) -> None:
    (folder / "train.txt.xz").write_bytes(lzma.compress(lines_of(variant).encode()))


def write_two(folder: Path, variant: int) -> None:
    (folder / "train_img.txt").write_text("\n".join(NAMES[variant]) + "\n")
    labels = "\n".join(" ".join(map(str, row)) for row in LABELS[variant]) + "\n"
    (folder / "train_label_onehot.txt").write_text(labels)


def wide_table(variant: int) -> pd.DataFrame:
    return pd.DataFrame({"path": NAMES[variant], **{f"c{i}": LABELS[variant][:, i] for i in range(4)}})


def joined_table(variant: int) -> pd.DataFrame:
    return pd.DataFrame({"path": NAMES[variant], "labels": [" ".join(map(str, row)) for row in LABELS[variant]]})


def nested_table(variant: int) -> pd.DataFrame:
    return pd.DataFrame({"path": NAMES[variant], "labels": LABELS[variant].tolist()})


def csv_writer(table):
    return lambda folder, variant: table(variant).to_csv(folder / "train.csv", index=False)


def parquet_writer(table):
    return lambda folder, variant: table(variant).to_parquet(folder / "train.parquet")


def list_reader(file: str):
    def read(folder: Path) -> tuple:
        one = read_list(folder / file)
        return one.names, one.labels, one.classes

    return read


def is_list(value: tuple, folder: Path) -> bool:
    one = ImageList(folder, *value)
    return (
        len(one) > 0
        and all(isinstance(name, str) and name not in ("", ".") for name in one.names)
        and len(set(one.names)) == len(one)
        and one.labels.dtype == np.uint8
        and one.labels.shape == (len(one), len(one.classes))
        and one.labels.shape[1] > 0
        and set(np.unique(one.labels)) <= {0, 1}
    )


def odd_tables(folder: Path) -> list[bytes]:
    good = wide_table(0)
    odd = [
        *(
            good.assign(path=column)
            for column in (range(12), [b"x"] * 12, [None] * 12, [""] * 12, ["a"] * 12, [["a"]] * 12)
        ),
        *(
            good.assign(c1=column)
            for column in ([0.5] * 12, ["x"] * 12, [None] * 12, [True] * 12, [2] * 12, [[0]] * 12)
        ),
        *(
            good[["path"]].assign(labels=[cell] * 12)
            for cell in (None, [], "", [0.5], [[0]], ["x"], b"0 1", 1, {"a": 1})
        ),
        *(good[:0], good[["path"]], good[["c0"]], good[[]], pd.concat([good, good]), good.assign(path=pd.NaT)),
    ]
    return [to_bytes(table.to_parquet) for table in odd]


def to_bytes(write: Callable) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def list_readers() -> list[Reader]:
    text = {"valid": is_list, "text": True}
    return [
        Reader("list .txt", "train.txt", write_text, list_reader("train.txt"), **text),
        Reader("list .txt.xz", "train.txt.xz", write_xz, list_reader("train.txt.xz"), True, is_list),
        Reader("list of two files, images", "train_img.txt", write_two, list_reader("train_img.txt"), **text),
        Reader("list of two files, labels", "train_label_onehot.txt", write_two, list_reader("train_img.txt"), **text),
        Reader("list .csv, columns", "train.csv", csv_writer(wide_table), list_reader("train.csv"), **text),
        Reader("list .csv, labels", "train.csv", csv_writer(joined_table), list_reader("train.csv"), **text),
        Reader(
            "list .parquet, columns",
            "train.parquet",
            parquet_writer(wide_table),
            list_reader("train.parquet"),
            False,
            is_list,
            odd_tables,
        ),
        Reader(
            "list .parquet, labels",
            "train.parquet",
            parquet_writer(nested_table),
            list_reader("train.parquet"),
            False,
            is_list,
            odd_tables,
        ),
    ]


# Tar shards. Every head has a checksum and every archive an end, so a shard that a strict reader would refuse may not
# give other samples; a digit of a .cls file has none.


def png(seed: int) -> bytes:
    return to_bytes(lambda buffer: Image.fromarray(pixels(seed)[:6, :6]).save(buffer, "PNG"))


def tar_of(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def samples(variant: int, label: bytes | None = None) -> dict[str, bytes]:
    members = {}
    for i in range(4):
        members[f"{variant}{i:03d}.png"] = png(10 * variant + i)
        members[f"{variant}{i:03d}.cls"] = label if label is not None and i == 1 else b"%d" % (i % 3)
    return members


def write_shards(folder: Path, variant: int) -> None:
    (folder / "train-000000.tar").write_bytes(tar_of(samples(variant)))
    (folder / "test-000000.tar").write_bytes(tar_of(samples(variant + 5)))


def is_whole_tar(data: bytes) -> bool:
    """Whether a strict reader accepts it: every head's checksum fits, and two empty blocks end it."""
    at = 0
    try:
        while at + 512 <= len(data):
            head = data[at : at + 512]
            if not any(head):
                return len(data) >= at + 1024 and not any(data[at:])
            if int(head[148:156].strip(b"\0 "), 8) != sum(head) - sum(head[148:156]) + 8 * ord(" "):
                return False
            size = int(head[124:136].strip(b"\0 "), 8)
            at += 512 + -(-size // 512) * 512
    except ValueError:
        pass
    return False


def read_index(folder: Path) -> tuple:
    return shards.index_shard(folder / "train-000000.tar")


def is_index(value: shards.ShardIndex, folder: Path) -> bool:
    lengths = {len(part) for part in (value.names, value.places, value.labels, value.marked)}
    return is_whole_tar((folder / "train-000000.tar").read_bytes()) and len(lengths) == 1


def read_shards(folder: Path) -> tuple:
    images = shards.load(folder)
    sizes = [images.source[i].shape for i in range(len(images.source))]
    return images.source.names, images.labels, images.train, images.test, sizes


def is_shards(value: tuple, folder: Path) -> bool:
    labels = value[1]
    return (
        is_whole_tar((folder / "train-000000.tar").read_bytes())
        and labels.dtype == np.uint8
        and labels.any(axis=1).all()
        and labels.shape[1] < 10**5
    )


def odd_shards(folder: Path) -> list[bytes]:
    odd = [
        "²".encode(),
        b"9" * 5000,
        b"1000000000",
        b"300000",
        b"-1",
        b"",
        b" ",
        b"1 0",
        b"0 0 0",
        b"1.0",
        b"\xff",
        b"0 2",
    ]
    members = [samples(0, label) for label in odd]
    less = list(samples(0).items())
    members += [dict(less[:-1]), dict(less[1:]), {}, {"a.txt": b"x"}, {"a.cls": b"1"}, {**samples(0), "0001.jpg": b"x"}]
    members += [{f"../{name}": content for name, content in less}, {name.upper(): content for name, content in less}]
    members += [{name: content[:40] for name, content in less}]
    return [tar_of(m) for m in members]


def shard_readers() -> list[Reader]:
    file = "train-000000.tar"
    return [
        Reader("shard, index", file, write_shards, read_index, False, is_index, odd_shards),
        Reader("shards, whole", file, write_shards, read_shards, False, is_shards, odd_shards),
    ]


# Checkpoints: zip files, so that every record has a CRC32.


def head_facts(role: str) -> dict:
    backbone = {"name": "efficientnet_lite0", "features": "logits", "dim": DIM, "sha256": "0" * 64, "pretrained": True}
    return {"role": role, "backbone": backbone, "data": "1" * 64, "epoch": 4, "metrics": {"map": 0.5}}


def write_head(file: Path, variant: int, role: str = "student", **more) -> None:
    save_head(file, HashHead(DIM, BITS, seed=variant), **head_facts(role), **more)


def head_value(head: HashHead, facts: dict) -> tuple:
    return head.config, head.state_dict(), facts


def is_head(value: tuple, folder: Path) -> bool:
    """Of the head alone; what a run needs of the facts beside it is the business of the readers of runs."""
    config, state, facts = value
    return (
        facts.get("format") == FORMAT
        and all(tensor.isfinite().all() for tensor in state.values())
        and state["layers.0.weight"].shape == (config["bits"], config["dim"])
    )


def changed(content: dict, values: tuple = (None, 7, "x", [], {})) -> list[dict]:
    """Dicts that lack a key, or have a value of another kind there."""
    return [
        *({k: v for k, v in content.items() if k != key} for key in content),
        *({**content, key: value} for key in content for value in values),
    ]


def odd_heads(folder: Path) -> list[bytes]:
    good = torch.load(folder / "best.pt", weights_only=True)
    state, config = good["state"], good["config"]
    odd = changed(good) + [good | {"config": c} for c in changed(config, (None, 0, -1, 2.5, "x", 10**9, True))]
    odd += [good | {"state": s} for s in changed(state)]
    weights = [v * float("nan") for v in state.values()] + [v.half() for v in state.values()]
    weights += [v.long() for v in state.values()] + [v + float("inf") for v in state.values()]
    odd += [good | {"state": {**state, key: w}} for key in state for w in weights]
    return [to_bytes(lambda buffer, one=one: torch.save(one, buffer)) for one in [*odd, [], 1, "x", None, state]]


def write_last(folder: Path, variant: int) -> None:
    module, run = trained(folder, variant)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, DIM)).sum().backward()
    optimizer.step()
    content = {"kind": KIND, "module": module.state_dict(), "optimizer": optimizer.state_dict(), "stale": 0}
    content |= {"best": {"map": {"value": 0.5, "epoch": 2}}, "epoch": EPOCH, "seconds": 1.5}
    save_atomically(run.path("last.pt"), content | {"rows": [{"epoch": e, "loss": 1.0} for e in range(1, EPOCH + 1)]})


def trained(folder: Path, variant: int) -> tuple[HashHead, Run]:
    return HashHead(DIM, BITS, seed=variant), Run(folder / "run", {"seed": 0}, resume=True)


def read_last(folder: Path) -> tuple:
    """What a resumed run that has no epoch left ends with."""
    module, run = trained(folder, 0)
    optimizer = torch.optim.Adam(module.parameters())
    schedule = Schedule(EPOCH, 1, 5)
    summary = fit(run, module, optimizer, lambda epoch: iter(()), dict, lambda *_: None, schedule)
    summary.pop("seconds")
    return module.state_dict(), optimizer.state_dict(), run.rows, summary


def is_last(value: tuple, folder: Path) -> bool:
    module, optimizer, rows, summary = value
    tensors = [*module.values(), *(t for state in optimizer["state"].values() for t in state.values())]
    return (
        all(t.isfinite().all() for t in tensors)
        and len(optimizer["state"]) == len(module)
        and summary["epochs"] == len(rows) == EPOCH
        and isinstance(summary["best"], dict)
    )


def odd_lasts(folder: Path) -> list[bytes]:
    good = torch.load(folder / "run" / "last.pt", weights_only=True)
    odd = changed(good) + [good | {"module": m} for m in changed(good["module"])]
    odd += [good | {"optimizer": o} for o in changed(good["optimizer"])]
    return [to_bytes(lambda buffer, one=one: torch.save(one, buffer)) for one in odd]


def checkpoint_readers() -> list[Reader]:
    def plain(folder: Path) -> dict:
        return read_checkpoint(folder / "some.pt", "test")

    def make_plain(folder: Path, variant: int) -> None:
        weights = torch.randn(4, 4, generator=torch.Generator().manual_seed(variant))
        save_atomically(folder / "some.pt", {"kind": "test", "weights": weights, "epoch": variant})

    def make_head(folder: Path, variant: int) -> None:
        write_head(folder / "best.pt", variant)

    def read_head(folder: Path) -> tuple:
        return head_value(*load_head(folder / "best.pt"))

    return [
        Reader("checkpoint", "some.pt", make_plain, plain, True),
        Reader("checkpoint of a head", "best.pt", make_head, read_head, True, is_head, odd_heads),
        Reader("checkpoint of a run", "run/last.pt", write_last, read_last, True, is_last, odd_lasts),
    ]


# Run folders: a student's, and the teacher's beside it. .npz are zip files with CRC32; .yaml and .json are a person's
# to read and to edit, so a changed value passes if it is one that the option could have.


def write_run(folder: Path, variant: int) -> None:
    teacher, student = folder / "teacher", folder / "student"
    draw = torch.Generator().manual_seed(variant)
    for run in (teacher, student):
        run.mkdir()
        codes = torch.randint(0, 2, (IMAGES, BITS), generator=draw) * 2 - 1
        write_training_codes(run, codes)
        write_json(run / "environment.json", {"command": f"python {variant}", "commit": f"abc{variant}", "threads": 2})
        best = {"value": 0.5, "epoch": 4 + variant}
        write_json(run / "summary.json", {"best": {"map": best}, "epochs": 9, "early_stop": False, "seconds": 1.5})
        (run / "log.csv").write_text(f"epoch,loss,map\n1,{variant + 2.5},\n2,1.25,0.5\n")
    write_head(teacher / "best_map.pt", variant, "teacher")
    for metric in ("sshp", "ashp"):
        write_head(student / f"best_{metric}.pt", variant + len(metric) + ord(metric[0]), batch_norm=None)
    seeds = {"seed": variant, "bits": BITS}
    write_args(teacher, train_teacher.make_parser().defaults() | seeds | {"run_dir": str(teacher)})
    write_args(student, distill.make_parser().defaults() | seeds | {"run_dir": str(student), "teacher": str(teacher)})
    labels, centroids = cluster_codes(codes, CLUSTERS, 0)
    masks = bit_masks(codes, labels, CLUSTERS, 0.5)
    np.savez(student / "clusters.npz", labels=labels, centroids=centroids, bit_masks=masks)


def write_args(run: Path, args: dict) -> None:
    plain = {k: str(v) if isinstance(v, Path) else v for k, v in sorted(args.items())}
    (run / "args.yaml").write_text(yaml.safe_dump(plain))


def read_student(folder: Path) -> tuple:
    """As evaluate.py reads a run before it opens any image."""
    run = read_run(folder / "student")
    given = argparse.Namespace(dataset=None, data_dir=None, cache_dir=None, lists_dir=None, device=None)
    options = vars(evaluate.run_options(given, run))
    heads = [head_value(head, {}) for one in (run, run.teacher) for head in one.heads.values()]
    return (
        options,
        run.size,
        run.bits,
        evaluate.named_options(run),
        evaluate.named_options(run.teacher),
        heads,
        run.facts,
    )


def could_be(value: object, default: object) -> bool:
    """Whether an option could have a value, by the kind of its default."""
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if default is None:
        return value is None or isinstance(value, (str, int, Path))
    return isinstance(value, (str, Path)) if isinstance(default, (str, Path)) else type(value) is type(default)


def is_student(value: tuple, folder: Path) -> bool:
    options = value[0]
    defaults = distill.make_parser().defaults()
    heads = all(t.isfinite().all() for _, state, _ in value[5] for t in state.values())
    return heads and all(name in options and could_be(options[name], d) for name, d in defaults.items())


def names_of_args(folder: Path) -> list[str]:
    """A teacher's path that reads well but leads nowhere is named itself."""
    try:
        teacher = yaml.safe_load((folder / "student" / "args.yaml").read_text())["teacher"]
    except Exception:  # the file is damaged at random: YAML raises many kinds
        return [str(folder / "student")]
    return [str(folder / "student"), *([str(Path(teacher))] if isinstance(teacher, str) else [])]


def read_commit(folder: Path) -> tuple:
    known = read_environment(folder / "student")
    return known["commit"], known["command"]


def are_texts(value: tuple, folder: Path) -> bool:
    return all(isinstance(text, str) for text in value)


def read_finished(folder: Path) -> tuple[bool, bool]:
    """(whether the run counts as finished, whether its summary is one)."""
    args = yaml.safe_load((folder / "student" / "args.yaml").read_text())
    finished = Run(folder / "student", args, resume=True).finished
    return finished, is_json(folder / "student" / "summary.json", {"best", "epochs"})


def is_finished(value: tuple[bool, bool], folder: Path) -> bool:
    """A run may be taken up again for a summary that is none; it may not count as finished by it."""
    finished, is_summary = value
    return is_summary or not finished


def is_json(file: Path, keys: set) -> bool:
    try:
        return keys <= json.loads(file.read_text()).keys()
    except (ValueError, AttributeError):
        return False


def read_records(folder: Path) -> tuple:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    report.write_records(pd.DataFrame({"file": [str(folder / "student" / "test.json")]}), out)
    return [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()], (out / "logs.csv").read_text()


def are_records(value: tuple, folder: Path) -> bool:
    return len(value[0]) == 2 and all(
        {"run", "best", "epochs", "arguments", "environment"} <= r.keys() for r in value[0]
    )


def are_codes(value: np.ndarray, folder: Path) -> bool:
    return value.dtype == np.int8 and value.ndim == 2 and len(value) > 0 and value.shape[1] > 0


def odd_codes(folder: Path) -> list[bytes]:
    codes = np.zeros((IMAGES, BITS // 8), dtype=np.uint8)
    odd = [
        {"codes": c, "bits": BITS}
        for c in (codes[0], codes[:0], codes[:, :1], codes[:, :0], codes.astype(float), codes[None])
    ]
    odd += [{"codes": codes, "bits": b} for b in (0, -8, 2.5, "x", 10**12, [16, 16], BITS + 1, float("nan"))]
    odd += [{"codes": codes}, {"bits": BITS}, {}, {"codes": codes.astype(object), "bits": BITS}]
    return [to_bytes(lambda buffer, one=one: np.savez(buffer, **one)) for one in odd]


def read_redundancy(folder: Path) -> dict:
    redundancy.draw_redundancy = lambda *_: None  # a figure takes longer than all the rest
    sys.argv = ["redundancy", "--run", str(folder / "student")]
    redundancy.main()
    return json.loads((folder / "student" / "redundancy.json").read_text())


def are_shares(value: dict, folder: Path) -> bool:
    return all(0 <= share <= 1 for one in value.values() for share in one.values())


def odd_clusters(folder: Path) -> list[bytes]:
    with np.load(folder / "student" / "clusters.npz", allow_pickle=False) as kept:
        good = dict(kept)
    labels, centroids = good["labels"], good["centroids"]
    kinds = (
        labels[:5],
        labels + 50,
        labels - 50,
        labels + 0.5,
        labels[None],
        labels.astype(str),
        labels.astype(object),
    )
    odd = [good | {"labels": kind} for kind in (*kinds, labels[:0], np.append(labels, 0), np.float64(1))]
    odd += [good | {"centroids": c} for c in (centroids[:1], centroids[:0], np.float64(1), centroids.astype(object))]
    odd += [{k: v for k, v in good.items() if k != key} for key in good]
    return [to_bytes(lambda buffer, one=one: np.savez(buffer, **one)) for one in odd]


def read_both_codes(folder: Path) -> np.ndarray:
    return read_training_codes(folder / "student")


def run_readers() -> list[Reader]:
    args = {"valid": is_student, "text": True, "named": names_of_args}
    text, run = {"text": True}, "student/"
    return [
        Reader("args.yaml", run + "args.yaml", write_run, read_student, **args),
        Reader("best_map.pt of the teacher", "teacher/best_map.pt", write_run, read_student, True, is_student),
        Reader("environment.json", run + "environment.json", write_run, read_commit, valid=are_texts, **text),
        Reader("summary.json, finished", run + "summary.json", write_run, read_finished, valid=is_finished, **text),
        Reader("summary.json, report", run + "summary.json", write_run, read_records, valid=are_records, **text),
        Reader("log.csv, report", run + "log.csv", write_run, read_records, valid=are_records, **text),
        Reader("train_codes.npz", run + "train_codes.npz", write_run, read_both_codes, True, are_codes, odd_codes),
        Reader("clusters.npz", run + "clusters.npz", write_run, read_redundancy, True, are_shares, odd_clusters),
    ]


# The feature cache: checksums of blocks in rows.json are to notice every byte. What has been cut off, or is marked as
# missing, may be extracted again: the same bits.


def features_of(variant: int) -> torch.Tensor:
    return torch.randn(40, DIM, generator=torch.Generator().manual_seed(variant))


def cached(folder: Path, variant: int) -> np.ndarray:
    rows = features_of(variant)

    def extract(start: int):
        yield from rows[start:].split(16)

    return FeatureCache(folder).get(FACTS, len(rows), DIM, extract, "features")


def write_cache(folder: Path, variant: int) -> None:
    cached(folder, variant)


def read_cache(folder: Path) -> np.ndarray:
    return np.array(cached(folder, 0))


def read_entries(folder: Path) -> tuple:
    """The same, and what `scripts.cache --list` and --cache-limit do with the entry."""
    listed = entries(folder)
    prune(folder, 10**12)
    return [entry["facts"] for entry in listed], read_cache(folder)


def are_entries(value: tuple, folder: Path) -> bool:
    facts, features = value
    right = features_of(0).numpy().astype(features.dtype)
    return all(isinstance(one, dict) for one in facts) and np.array_equal(features, right)


def cache_readers() -> list[Reader]:
    return [
        Reader("cache, features.bin", "*/features.bin", write_cache, read_cache, True, swaps=False),
        Reader("cache, rows.json", "*/rows.json", write_cache, read_cache, True, text=True, swaps=False),
        Reader("cache, facts.json", "*/facts.json", write_cache, read_entries, valid=are_entries, text=True),
    ]


# Results: JSON without a checksum, so another number passes if it can be one; .npz has CRC32.


def write_results(folder: Path, variant: int) -> None:
    for number, method in enumerate(("brcd", "none")):
        run = folder / method
        run.mkdir()
        write_json(run / "test.json", result_of(method, 0.5 + variant / 10 + number / 100, run))


def result_of(method: str, value: float, run: Path) -> dict:
    curve = {"precision": [value, 0.2], "recall": [0.1, 1.0], "answered": [0.6, 1.0]}
    one = {"k": 10, "map": {"stable/retrieved": value, "expected/min": 0.1}, "map_all": 0.2, "ndcg": 0.4}
    one |= {"precision_at": {"10": 0.3}, "precision_radius_2": 0.0, "precision_recall": curve}
    return {
        **{"run": str(run), "dataset": "digits", "data": "0123456789abcdef", "queries": "test", "method": method},
        **{"n_queries": 20, "n_database": 40, "options": {}, "teacher_options": {"views": 4}, "seed": 0, "bits": BITS},
        **{"teacher_seed": 0, "teacher_hashing": "cibhash", "teacher_backbone": "big", "student_backbone": "small"},
        **{"student_size": None, "engine": "torch", "precision": "float32", "pretrained": True, "multi_label": False},
        **{"commit": "c", "command": "x", "teacher_commit": "t", "teacher_command": "y"},
        **{"sshp": one, "ashp": one, "teacher": one},
    }


def read_results(folder: Path) -> tuple:
    """All of a report but its figures, which take seconds."""
    rows = report.read_rows([folder / method / "test.json" for method in ("brcd", "none")])
    tables = [
        (report.title_of(t, False), report.table_of(t, ["map"]), report.significance(t)) for t in report.tables_of(rows)
    ]
    return rows, tables, report.precision_recall(rows)


def are_results(value: tuple, folder: Path) -> bool:
    rows = value[0]
    numbers = [*rows["map"], *rows["ndcg"], *rows["map_all"]]
    return (
        all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in numbers)
        and all(isinstance(v, (int, np.integer)) and not isinstance(v, bool) for v in [*rows["bits"], *rows["seed"]])
        and all(isinstance(v, str) for name in ("dataset", "teacher", "method", "setting") for v in rows[name])
    )


def odd_results(folder: Path) -> list[bytes]:
    good = result_of("brcd", 0.5, folder / "brcd")
    odd = changed(good, (None, 7, "x", [], {}, True, -0.5))
    one = good["sshp"]
    odd += [good | {"sshp": r} for r in changed(one, (None, 7, "x", [], {}, float("nan"), -0.5))]
    odd += [
        good | {"sshp": one | {key: r}}
        for key in ("map", "precision_at", "precision_recall")
        for r in changed(one[key])
    ]
    odd += [good | {"options": o} for o in ({"alpha": "x"}, {"alpha": None}, {"x": [1]}, {"mask": 0}, {"margin": {}})]
    return [json.dumps(one).encode() for one in [*odd, [], 1, None, "x", {}]]


def result_readers() -> list[Reader]:
    return [Reader("test.json", "brcd/test.json", write_results, read_results, False, are_results, odd_results, True)]


# Search: an export is bound to its hash; of an index the codes have checksums, names and thumbnails have none.

PICTURES = 12


def write_student(folder: Path, variant: int) -> None:
    write_export(folder / "student", BITS, seed=variant)


def read_export(folder: Path) -> tuple:
    model = Exported(folder / "student")
    return {name: model.card[name] for name in KEYS}, model.width, model.code(pixels(0))


def is_export(value: tuple, folder: Path) -> bool:
    card, width, code = value
    return all(isinstance(card[name], kind) for name, kind in KEYS.items()) and code.shape == (width,)


def odd_cards(folder: Path) -> list[bytes]:
    good = json.loads((folder / "student" / "card.json").read_text())
    odd = changed(good, (None, 7, "x", [], {}, True, -0.5))
    return [json.dumps(one).encode() for one in [*odd, [], 1, None, "x", {}, good | {"bits": 10**9}]]


def write_pictures_index(folder: Path, variant: int) -> None:
    write_student(folder, 0)
    for i in range(PICTURES):
        (folder / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels(PICTURES * variant + i)).save(folder / "photos" / f"{variant}{i:02}.png")
    with Index(folder / "index", write=True) as index, redirect_stderr(io.StringIO()):
        adding.add(index, Exported(folder / "student"), [folder / "photos"], threads=1)


def read_pictures_index(folder: Path) -> tuple:
    """All that a query shows: hits, what is known of them, their thumbnails."""
    with Index(folder / "index") as index:
        model = asking.model_of(index)
        queries = np.stack([model.code(pixels(i)) for i in range(3)])
        hits = index.search(queries, PICTURES)
        known = index.records([hit.id for hit in hits[0]])
        thumbnails = [index.thumbnail(hit.id) for hit in hits[0]]
    return [[(hit.path, hit.distance) for hit in of_one] for of_one in hits], known, thumbnails


def is_pictures_index(value: tuple, folder: Path) -> bool:
    hits, known, thumbnails = value
    distances = [[distance for _, distance in of_one] for of_one in hits]
    # Names may be other names; no picture may be missing, and none may be at another distance.
    return (
        all(len(of_one) == PICTURES and of_one == sorted(of_one) and of_one[-1] <= BITS for of_one in distances)
        and len({record.id for record in known}) == PICTURES
        and all(isinstance(record.path, str) for record in known)
        and all(isinstance(thumbnail, bytes) for thumbnail in thumbnails)
    )


def write_photos(folder: Path, variant: int) -> None:
    (folder / "photos").mkdir()
    for i in range(PICTURES):
        Image.fromarray(pixels(PICTURES * variant + i)).save(folder / "photos" / f"{i:02}.png")
    read_photos(folder)


def read_photos(folder: Path) -> tuple:
    for file in (folder / "photos").iterdir():
        os.utime(file, (0, 0))  # the answer is kept by name, size and time
    with redirect_stderr(io.StringIO()):
        data = photos.load(folder / "photos", cache_dir=folder / "cache")
    return data.source.names, data.train, data.database, data.val, data.test, data.notes


def search_readers() -> list[Reader]:
    return [
        Reader("export, card.json", "student/card.json", write_student, read_export, False, is_export, odd_cards, True),
        Reader("export, model.onnx", "student/model.onnx", write_student, read_export, True, swaps=False),
        Reader("index", "index", write_pictures_index, read_pictures_index, valid=is_pictures_index, text=True),
        Reader("photos, what decodes", "cache/photos_*.json", write_photos, read_photos, True, text=True, swaps=False),
    ]


def readers() -> dict[str, Reader]:
    every = [
        *image_readers(),
        *list_readers(),
        *shard_readers(),
        *checkpoint_readers(),
        *run_readers(),
        *cache_readers(),
        *result_readers(),
        *search_readers(),
    ]
    return {reader.name: reader for reader in every}
