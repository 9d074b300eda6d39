"""Write a run's network as one ONNX file that takes a picture of any size and gives its code, and a card beside it.

    python export.py --run runs/brcd --out student           # student/model.onnx, student/card.json
    python export.py --run runs/teacher --out teacher        # for the database, where students ask (ASHP)

Everything is inside: evaluation's resize and crop, scaling, backbone, head, sign and packing. The codes are checked
against those of evaluate.py before anything appears at --out.
"""

from utils.errors import guarded  # isort: skip  (first: Ctrl-C while the rest is imported is one line too)

import argparse
import hashlib
import importlib.metadata
import os
import platform
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn
from tqdm import tqdm

from data.dataset import HashingData
from data.load import load_data
from data.resize import resize
from data.transforms import EVAL_VERSION, short_side
from evaluate import Hasher, run_options
from models.backbones import BACKBONES, FrozenBackbone, hash_state
from models.heads import HashHead
from models.trained import SELECTED_BY, Trained, read_run
from retrieval.codes import pack
from retrieval.exported import CARD, FORMAT, MODEL, Exported
from retrieval.relevance import measure
from utils.errors import UserError
from utils.files import check_replaceable, folder_aside, write_json
from utils.options import Parser, one_of
from utils.runs import git_commit, read_summary

OPSET = 20
CHECKED = 1000  # images whose codes are compared with evaluate.py's
MOST_DIFFERENT = 0.005  # share of their bits
LARGEST = 2**31 - 2**24  # bytes of a protobuf file, with room for the graph


def parse() -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of a student's or a teacher's run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; an export that is there is replaced")
    parser.add_argument(
        "--head",
        type=one_of(SELECTED_BY["student"]),
        help="of a student: chosen for asking its own codes (sshp, the default) or its teacher's (ashp)",
    )
    parser.add_argument("--logits", action="store_true", help="the file gives the logits too")
    parser.add_argument("--data-dir", type=Path, help="where the images are now (default: where training found them)")
    parser.add_argument("--lists-dir", type=Path, help="where their lists are now")
    parser.add_argument("--cache-dir", type=Path, help="default: the run's")
    parser.add_argument("--device", help="default: the run's")
    parser.set_defaults(dataset=None)  # the run's own images
    return parser.parse_args()


class Preprocessing(nn.Module):
    """A picture uint8 [H, W, 3] -> uint8 [1, 3, size, size], as evaluation sees it."""

    def __init__(self, size: int, crop: bool):
        super().__init__()
        self.size, self.short = size, short_side(size) if crop else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return resize(image, self.size, self.short).permute(2, 0, 1)[None]


class Network(nn.Module):
    """uint8 [1, 3, size, size] -> (packed code uint8 [ceil(bits / 8)], logits float32 [bits])."""

    def __init__(self, backbone: FrozenBackbone, head: HashHead):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.head(self.backbone(pixels))[0]
        bits = nn.functional.pad((logits >= 0).int(), (0, -len(logits) % 8))  # sign(0) = +1
        code = (bits.view(-1, 8) * 2 ** torch.arange(7, -1, -1, dtype=torch.int32)).sum(1)
        return code.to(torch.uint8), logits


def to_onnx(module: nn.Module, example: torch.Tensor, inputs: list, outputs: list, dynamic=None) -> onnx.ModelProto:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        program = torch.onnx.export(
            module.eval(),
            (example,),
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    return program.model_proto


def preprocessing(size: int, crop: bool) -> onnx.ModelProto:
    sides = {i: torch.export.Dim(name, min=1) for i, name in enumerate(("height", "width"))}
    example = torch.zeros(size + 77, size + 33, 3, dtype=torch.uint8)
    return to_onnx(Preprocessing(size, crop), example, ["image"], ["pixels"], {"image": sides})


def network(backbone: FrozenBackbone, head: HashHead, size: int) -> onnx.ModelProto:
    example = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    return to_onnx(Network(backbone.cpu(), head.cpu()), example, ["pixels"], ["code", "logits"])


def joined(before: onnx.ModelProto, after: onnx.ModelProto, logits: bool) -> bytes:
    """One file of both, without what the exporter noted of this machine."""
    before, after = (
        onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)
        for model, prefix in ((before, "resize/"), (after, "network/"))
    )
    outputs = ["code", "logits"] if logits else ["code"]
    model = onnx.compose.merge_models(before, after, [("pixels", "pixels")], outputs=outputs, producer_name="export.py")
    del model.graph.value_info[:], model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


class Job:
    """What is exported and against what it is checked."""

    def __init__(self, args: argparse.Namespace):
        self.run = read_run(args.run)
        teacher = self.run.teacher is None
        if teacher and args.head:
            raise UserError(f"--head {args.head}: {args.run} is a teacher's run, which has one head")
        self.metric = "map" if teacher else args.head or "sshp"
        options = run_options(args, self.run)
        self.images = load_data(options)
        self.run.check_data(self.images.fingerprint, EVAL_VERSION)
        self.hasher = Hasher(self.run, options, self.images)
        self.backbone, self.head = self.hasher.backbone, self.run.heads[self.metric]
        size = sum(p.numel() * p.element_size() for p in (*self.backbone.parameters(), *self.head.parameters()))
        if size > LARGEST:
            raise UserError(
                f"{self.backbone.name}: its weights take {size / 2**30:.1f} GiB, one ONNX file holds 2 at most"
            )

    def card(self, model: bytes) -> dict:
        run, packages = self.run, ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
        return {
            "format": FORMAT,
            "role": "student" if run.teacher else "teacher",
            "bits": run.bits,
            "method": run.args["method"] if run.teacher else run.args["hashing"],
            "backbone": self.backbone.name,
            "backbone_sha256": self.backbone.sha256,
            "licence": licence(run, self.backbone.name),
            "size": run.size,
            "crop": self.images.crop,
            "precision": "float32",
            "head": hash_state(self.head),
            "chosen_by": self.metric,
            "teacher_head": run.teacher.head_hash if run.teacher else None,
            "data": {"title": self.images.title, "fingerprint": self.images.fingerprint},
            "metrics": {"validation": read_summary(run.folder)["best"], "measure": measure(self.images)},
            "flipped_bits": 0.0,
            "map_kept": 1.0,
            "model_sha256": hashlib.sha256(model).hexdigest(),
            "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
            "commit": git_commit(),
        }


def licence(run: Trained, backbone: str) -> str:
    weights = run.args["student_weights" if run.teacher else "weights"]
    if weights == "random":
        return "none: random weights"
    return BACKBONES[backbone].licence if weights == "pretrained" else f"unknown: weights of {Path(weights).name}"


def codes_of(exported: Exported, images: HashingData, rows: np.ndarray, what: str) -> np.ndarray:
    """uint8 [n, width], one picture after another as a search would have them."""
    pixels = (images.source[row].permute(1, 2, 0).numpy() for row in rows)
    return np.stack([exported.code(one) for one in tqdm(pixels, what, len(rows), unit="img")])


def different(codes: np.ndarray, others: np.ndarray, bits: int) -> float:
    """Share of bits that differ between packed codes [n, width]."""
    return int(np.bitwise_count(codes ^ others).sum()) / (len(codes) * bits)


def main() -> None:
    args = parse()
    check_replaceable(args.out, CARD)
    job = Job(args)
    print(f"exporting {job.backbone.name} with its head of {job.run.bits} bits")
    before = preprocessing(job.run.size, job.images.crop)
    model = joined(before, network(job.backbone, job.head, job.run.size), args.logits)
    with folder_aside(args.out, CARD) as folder:
        (folder / MODEL).write_bytes(model)
        card = job.card(model)
        write_json(folder / CARD, card)
        rows = np.unique(np.concatenate([job.images.val, job.images.val_database])[:CHECKED])
        codes = codes_of(Exported(folder, os.cpu_count()), job.images, rows, "checking")
        share = different(codes, pack(job.hasher.codes(job.metric, rows)), job.run.bits)
        print(f"{share:.3%} of the bits of {len(rows):,} pictures differ from evaluate.py's")
        if share > MOST_DIFFERENT:
            raise UserError(
                f"{args.run}: {share:.2%} of the exported codes' bits differ from those of evaluate.py, more than "
                f"{MOST_DIFFERENT:.1%}; nothing is written. Were its features made on a GPU? Try --device cpu"
            )
        card["checked"] = {"images": len(rows), "differs_from_evaluation": share}
        write_json(folder / CARD, card)
    print(f"{args.out}: {len(model) / 1e6:.1f} MB")


if __name__ == "__main__":
    guarded(main)
