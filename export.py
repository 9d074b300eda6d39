"""Write a run's network as one ONNX file that takes a picture of any size and gives its code, and a card beside it.

    python export.py --run runs/brcd --out student           # student/model.onnx, student/card.json
    python export.py --run runs/teacher --out teacher        # for the database, where students ask (ASHP)

Everything is inside: evaluation's resize and crop, scaling, backbone, head, sign and packing. The codes are checked
against those of evaluate.py before anything appears at --out. --precision float16 and int8 make the file smaller and
int8 makes it quicker; what that costs is measured on validation images and said on the card.
"""

import argparse
import hashlib
import importlib.metadata
import logging
import platform
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from torch import nn
from tqdm import tqdm

from data.dataset import HashingData
from data.features import BATCH
from data.load import for_selection, load_data
from data.resize import resize
from data.transforms import EVAL_VERSION, eval_transform, short_side
from data.views import CPU, eval_batches
from models.backbones import CROP_PCT, FrozenBackbone, backbone_spec, hash_state
from models.engines import choose_engine, make_engine
from models.exported import CARD, FORMAT, MODEL, Exported
from models.heads import HashHead
from models.trained import SELECTED_BY, Trained, read_run
from retrieval.codes import pack, unpack
from retrieval.hasher import Hasher, parse_over_run, run_options
from retrieval.metrics import mean_average_precision
from retrieval.relevance import measure, relevance
from utils.errors import UserError, first_line, guarded
from utils.files import check_replaceable, folder_aside, write_json
from utils.machine import cores
from utils.options import Parser, one_of
from utils.runs import git_commit, read_summary

OPSET = 20
PRECISIONS = ("float32", "float16", "int8")
CALIBRATION = 128  # training images that give int8 its ranges
CHECKED = 1000  # images whose codes are compared with evaluate.py's; those that are validation queries also search
SEARCHED = 4000  # images, at most, that they search
MOST_DIFFERENT = 0.005  # share of the bits in float32
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
    parser.add_argument(
        "--precision",
        type=one_of(PRECISIONS),
        default="float32",
        help="of the network; pixels are whole numbers in all",
    )
    parser.add_argument("--logits", action="store_true", help="the file gives the logits too")
    return parse_over_run(parser)


class Preprocessing(nn.Module):
    """A picture uint8 [H, W, 3] -> uint8 [1, 3, size, size], as evaluation sees it."""

    def __init__(self, size: int, crop: bool, crop_pct: float):
        super().__init__()
        self.size, self.short = size, short_side(size, crop_pct) if crop else None

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


def to_onnx(
    module: nn.Module, example: torch.Tensor, inputs: list[str], outputs: list[str], dynamic: dict | None = None
) -> onnx.ModelProto:
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
    return program.model_proto  # type: ignore[union-attr]


def preprocessing(size: int, crop: bool, crop_pct: float = CROP_PCT) -> onnx.ModelProto:
    sides = {i: torch.export.Dim(name, min=1) for i, name in enumerate(("height", "width"))}
    example = torch.zeros(size + 77, size + 33, 3, dtype=torch.uint8)
    return to_onnx(Preprocessing(size, crop, crop_pct), example, ["image"], ["pixels"], {"image": sides})


def network(backbone: FrozenBackbone, head: HashHead, size: int) -> onnx.ModelProto:
    example = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    try:
        return to_onnx(Network(backbone.cpu(), head.cpu()), example, ["pixels"], ["code", "logits"])
    except Exception as error:  # the exporter has a dozen kinds
        raise UserError(f"{backbone.name} can't be written as ONNX ({first_line(error)})") from None


def in_half(network: onnx.ModelProto) -> onnx.ModelProto:
    """Weights kept in float16 and computed with in float32, which every runtime can, at the speed of float32."""
    half = onnx.ModelProto()
    half.CopyFrom(network)
    casts = []
    for tensor in half.graph.initializer:
        weights = onnx.numpy_helper.to_array(tensor)
        if weights.dtype != np.float32 or weights.size < 1024 or np.abs(weights).max() > np.finfo(np.float16).max:
            continue  # biases and scaling weigh nothing
        name = f"{tensor.name}_half"
        casts.append(
            onnx.helper.make_node("Cast", [name], [tensor.name], f"{tensor.name}_single", to=onnx.TensorProto.FLOAT)
        )
        tensor.CopyFrom(onnx.numpy_helper.from_array(weights.astype(np.float16), name))
    nodes = [*casts, *half.graph.node]
    del half.graph.node[:]
    half.graph.node.extend(nodes)
    return half


class Pixels(CalibrationDataReader):
    """What the network sees of some images, one after another."""

    def __init__(self, images: HashingData, rows: np.ndarray, size: int, crop_pct: float = CROP_PCT):
        views = (eval_transform(images.source[row], size, images.crop, crop_pct)[None].numpy() for row in rows)
        self.batches = ({"pixels": one} for one in tqdm(views, "calibrating", len(rows), unit="img"))

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self.batches, None)


def in_bytes(network: onnx.ModelProto, pixels: Pixels) -> onnx.ModelProto:
    """Weights and activations in 8 bits, a scale for each channel of weights; the last layer, which decides signs, in
    float32, and layer norms, whose weights ONNX Runtime can't turn into uint8 where they share a zero."""
    made_by = {output: node for node in network.graph.node for output in node.output}
    last, node = [], made_by["logits"]
    while True:  # up to the last layer with weights
        last.append(node.name)
        if node.op_type in ("Gemm", "MatMul"):
            break
        node = made_by[node.input[0]]
    logging.disable(logging.WARNING)  # it asks for a preparation that the exporter has done
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / MODEL
            how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
            norms = [node.name for node in network.graph.node if node.op_type == "LayerNormalization"]
            quantize_static(network, file, pixels, nodes_to_exclude=last + norms, **how)
            return onnx.load(file)
    finally:
        logging.disable(logging.NOTSET)


def joined(before: onnx.ModelProto, after: onnx.ModelProto, logits: bool) -> bytes:
    """One file of both, without what the exporter noted of this machine."""
    before, after = (
        onnx.compose.add_prefix(model, prefix, rename_inputs=False, rename_outputs=False)
        for model, prefix in ((before, "resize/"), (after, "network/"))
    )
    outputs = ["code", "logits"] if logits else ["code"]
    before.ir_version = after.ir_version
    model = onnx.compose.merge_models(before, after, [("pixels", "pixels")], outputs=outputs, producer_name="export.py")
    opsets = {one.domain: one for one in model.opset_import}.values()
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    del model.graph.value_info[:], model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


class Original:
    """A run, its images, and how evaluate.py hashes them."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.run = args, read_run(args.run)
        self.teacher = self.run.teacher or self.run
        if self.run is self.teacher and args.head:
            raise UserError(f"--head {args.head}: {args.run} is a teacher's run, which has one head")
        self.metric = "map" if self.run is self.teacher else args.head or "sshp"
        self.options = run_options(args, self.run)
        self.images = load_data(self.options, None if args.dataset else self.teacher.folder)
        trained_on = self.run.facts["data"]
        self.run.check_data(trained_on if args.dataset else self.images.fingerprint, EVAL_VERSION)
        self.hasher = Hasher(self.run, self.options, self.images)
        self.backbone, self.head = self.hasher.backbone, self.run.heads[self.metric]
        size = sum(p.numel() * p.element_size() for p in (*self.backbone.parameters(), *self.head.parameters()))
        if size > LARGEST:
            raise UserError(f"{self.backbone.name}: its weights take {size / 2**30:.1f} GiB; one ONNX file holds 2 GiB")

    def write(self, folder: Path, model: bytes, precision: str, facts: dict | None = None) -> Exported:
        """The model and its card, read back."""
        (folder / MODEL).write_bytes(model)
        card = self.card(precision) | {"model_sha256": hashlib.sha256(model).hexdigest()} | (facts or {})
        write_json(folder / CARD, card)
        return Exported(folder)

    def card(self, precision: str) -> dict:
        run, packages = self.run, ("torch", "torchvision", "timm", "onnx", "onnxscript", "onnxruntime")
        title, how = self.images.title, measure(for_selection(run.args.get("select_by"), self.images))
        if self.args.dataset:
            title, how = self.teacher.args["dataset"], "mAP of the validation images that it was chosen on"
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
            **self.backbone.prepared(),
            "precision": precision,
            "head": hash_state(self.head),
            "chosen_by": self.metric,
            "teacher_head": run.teacher.head_hash if run.teacher else None,
            "data": {"title": title, "fingerprint": run.facts["data"]},
            "metrics": {"validation": read_summary(run.folder)["best"], "measure": how},
            "flipped_bits": 0.0,
            "map_kept": 1.0,
            "versions": {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in packages},
            "commit": git_commit(),
        }

    def evaluated(self, rows: np.ndarray) -> np.ndarray:
        """What evaluate.py --dump-codes writes of these images, uint8 [n, width]."""
        return pack(self.hasher.codes(self.metric, rows))

    def in_float32(self, rows: np.ndarray) -> np.ndarray:
        """The same in float32, where the run was computed in less: what the exported file must give."""
        if self.hasher.features.precision == torch.float32:
            return self.evaluated(rows)
        size, (name, precision) = self.run.size, choose_engine("auto", "float32", CPU)
        engine = make_engine(self.backbone, size, CPU, name, precision, BATCH)
        batches = eval_batches(self.images, rows, size, BATCH, crop_pct=self.backbone.crop_pct)
        shown = tqdm(batches, "in float32", -(-len(rows) // BATCH))
        return pack(self.head.cpu().encode(torch.cat([engine(batch).half() for batch in shown])))

    def cost(self, exported: Exported, rows: np.ndarray, single: np.ndarray) -> dict:
        """What a file of less precision loses: facts for its card.

        Bits that flip are of images ``rows``, whose codes in float32 are ``single``. mAP is of the validation queries
        among them; with either file's codes they search up to ``SEARCHED`` of what validation searches, hashed by the
        same file, or by the teacher where the head was chosen to ask that.
        """
        codes, images = codes_of(exported, self.images, rows, "checking"), self.images
        n, searched = min(len(images.val), len(rows)), spread(images.val_database, SEARCHED)
        teacher = self.hasher if self.run is self.teacher else Hasher(self.teacher, self.options, images)
        if self.metric == "ashp":
            mine = others = pack(teacher.codes("map", searched))
        else:
            mine, others = codes_of(exported, images, searched, "searching"), self.evaluated(searched)
        labels = relevance(images, rows[:n], searched, teacher.features)
        now, before = (
            mean_average_precision(unpack(asking, self.run.bits), unpack(asked, self.run.bits), *labels, images.k)
            for asking, asked in ((codes[:n], mine), (single[:n], others))
        )
        flipped = different(codes, single, self.run.bits)
        print(
            f"{exported.card['precision']}: {flipped:.3%} of the bits flip; {measure(images)} of {n:,} validation "
            f"queries {now:.4f}, in float32 {before:.4f}"
        )
        maps = {"map": now, "map_float32": before, "queries": n, "searched": len(searched)}
        return {"flipped_bits": flipped, "map_kept": now / before if before else 1.0, "maps": maps}


def licence(run: Trained, backbone: str) -> str:
    weights = run.args["student_weights" if run.teacher else "weights"]
    if weights == "random":
        return "none: random weights"
    return backbone_spec(backbone).licence if weights == "pretrained" else f"unknown: weights of {Path(weights).name}"


def codes_of(exported: Exported, images: HashingData, rows: np.ndarray, what: str) -> np.ndarray:
    """uint8 [n, width], each picture hashed by itself, as a search does it; every core hashes its own."""

    def one(row: int) -> np.ndarray:
        return exported.code(images.source[row].permute(1, 2, 0).numpy())

    with ThreadPoolExecutor(cores()) as pool:
        return np.stack(list(tqdm(pool.map(one, rows), what, len(rows), unit="img")))


def different(codes: np.ndarray, others: np.ndarray, bits: int) -> float:
    """Share of bits that differ between packed codes [n, width]."""
    return int(np.bitwise_count(codes ^ others).sum()) / (len(codes) * bits)


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """Up to ``most`` of them, evenly."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


def agreement(original: Original, rows: np.ndarray, codes: np.ndarray) -> dict:
    """Whether codes in float32 are evaluate.py's.

    Raises:
        UserError: too many bits differ.
    """
    bits = original.run.bits
    share, wrong = different(codes, original.evaluated(rows), bits), different(codes, original.in_float32(rows), bits)
    print(f"float32: {share:.3%} of the bits of {len(rows):,} images differ from evaluate.py's")
    if share > wrong:
        print(
            f"note: the run was computed in {original.hasher.features.precision}; in float32 {wrong:.3%} of them differ"
        )
    if wrong > MOST_DIFFERENT:
        raise UserError(
            f"{original.run.folder}: {wrong:.2%} of the exported codes' bits differ from PyTorch's in float32, more "
            f"than {MOST_DIFFERENT:.1%}; nothing is written"
        )
    return {"images": len(rows), "differs_from_evaluation": share, "differs_in_float32": wrong}


def main() -> None:
    args = parse()
    check_replaceable(args.out, CARD)
    original = Original(args)
    images, backbone, size = original.images, original.backbone, original.run.size
    print(f"exporting {backbone.name} with its head of {original.run.bits} bits")
    before = preprocessing(size, images.crop, backbone.crop_pct)
    after = network(backbone, original.head, size)
    rows = np.concatenate([images.val, images.val_database])[:CHECKED]
    with folder_aside(args.out, CARD) as folder, tempfile.TemporaryDirectory() as aside:
        model = joined(before, after, args.logits)
        single = codes_of(original.write(Path(aside), model, "float32"), images, rows, "checking")
        facts = {"checked": agreement(original, rows, single)}
        if args.precision != "float32":
            calibration = Pixels(images, spread(images.train, CALIBRATION), size, backbone.crop_pct)
            try:
                after = in_half(after) if args.precision == "float16" else in_bytes(after, calibration)
                model = joined(before, after, args.logits)
                reduced = original.write(folder, model, args.precision)
            except (UserError, OSError):
                raise
            except Exception as error:  # ONNX Runtime's have no common parent
                why = f"{backbone.name} can't be exported in {args.precision} ({first_line(error)})"
                raise UserError(f"{why}; use --precision float32") from None
            facts |= original.cost(reduced, rows, single)
        original.write(folder, model, args.precision, facts)
    print(f"{args.out}: {len(model) / 1e6:.1f} MB, {original.run.bits} bits a picture")


if __name__ == "__main__":
    guarded(main)
