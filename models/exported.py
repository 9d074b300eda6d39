"""An exported network as a search uses it: ONNX Runtime alone, no PyTorch, so that a search starts at once."""

import hashlib
from pathlib import Path
from types import UnionType

import numpy as np
import onnxruntime

from utils.errors import UserError, first_line
from utils.files import read_json

FORMAT = 1
MODEL, CARD = "model.onnx", "card.json"
KEYS: dict[str, type | UnionType] = {
    "role": str,
    "bits": int,
    "method": str,
    "backbone": str,
    "backbone_sha256": str,
    "licence": str,
    "size": int,
    "crop": bool,
    "precision": str,
    "head": str,
    "teacher_head": str | None,
    "data": dict,
    "metrics": dict,
    "flipped_bits": float | int,
    "map_kept": float | int,
    "model_sha256": str,
    "versions": dict,
    "commit": str,
}
PIXELS = "a picture is uint8 [H, W, 3], as data.decode.pixels_of gives it, not {} {}"


class Exported:
    """An export folder read back.

    Attributes:
        folder, card: where it lies and what it says of itself.
        bits: code length.
        width: bytes of a code.
        hash: SHA-256 of the model file: codes of one hash can be compared.

    Args:
        folder: what ``export.py`` wrote.
        threads: that one picture may use.
        gpu: on a CUDA device, by onnxruntime-gpu. Sums are added in another order there: not tried, bits may differ.

    Raises:
        UserError: no export there, a damaged one, one of another format, or one that this ONNX Runtime can't run.
    """

    def __init__(self, folder: Path, threads: int = 1, gpu: bool = False):
        self.folder = Path(folder)
        self.card = read_card(self.folder)
        self.bits, self.hash = self.card["bits"], self.card["model_sha256"]
        self.width = -(-self.bits // 8)
        self._session = self._open(threads, gpu)

    def _open(self, threads: int, gpu: bool) -> onnxruntime.InferenceSession:
        file = self.folder / MODEL
        try:
            model = file.read_bytes()
        except FileNotFoundError:
            raise UserError(f"{file}: no such file; export that run again") from None
        if hashlib.sha256(model).hexdigest() != self.hash:
            raise UserError(f"{file}: damaged, or not the model that {CARD} describes; export that run again")
        if gpu and "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            raise UserError("no GPU can be used: ONNX Runtime has no CUDA here; put onnxruntime-gpu in its place")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.enable_cpu_mem_arena = False  # it would keep as much as the largest picture took
        options.enable_mem_pattern = False  # it would keep a plan for every size of picture
        options.log_severity_level = 3
        options.add_session_config_entry("session.x64quantprecision", "1")  # int8 without saturation on old processors
        try:
            providers = [("CUDAExecutionProvider", {"use_tf32": 0})] if gpu else ["CPUExecutionProvider"]
            session = onnxruntime.InferenceSession(model, options, providers=providers)
        except Exception as error:  # ONNX Runtime has a dozen kinds, all without a common parent
            raise UserError(
                f"{file}: ONNX Runtime {onnxruntime.__version__} can't run it ({first_line(error)}); "
                "install the version that constraints.txt names"
            ) from None
        if gpu and "CUDAExecutionProvider" not in session.get_providers():  # it goes on by the processor, in silence
            raise UserError(
                "no GPU can be used: ONNX Runtime could not open its CUDA provider; are CUDA and cuDNN there?"
            )
        names = [one.name for one in (*session.get_inputs(), *session.get_outputs())]
        if names not in (["image", "code"], ["image", "code", "logits"]):
            raise UserError(f"{file}: its inputs and outputs are {names}; export that run again")
        (length,) = session.get_outputs()[0].shape
        if isinstance(length, int) and length != self.width:
            raise UserError(f"{file}: codes of {length} bytes, {CARD} says {self.bits} bits; export that run again")
        return session

    def code(self, pixels: np.ndarray) -> np.ndarray:
        """A picture uint8 [H, W, 3] of any size -> its packed code uint8 [width], as ``retrieval.codes.pack`` packs."""
        return self._run("code", pixels)

    def logits(self, pixels: np.ndarray) -> np.ndarray:
        """float32 [bits], whose signs are the code's bits.

        Raises:
            UserError: they were not exported.
        """
        if len(self._session.get_outputs()) == 1:
            raise UserError(f"{self.folder}: was exported without logits; export that run again with --logits")
        return self._run("logits", pixels)

    def _run(self, output: str, pixels: np.ndarray) -> np.ndarray:
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(PIXELS.format(pixels.dtype, list(pixels.shape)))
        return self._session.run([output], {"image": np.ascontiguousarray(pixels)})[0]


def read_card(folder: Path) -> dict:
    """What an export says of itself.

    Raises:
        UserError: no export there, a damaged card, or one of another format.
    """
    file = Path(folder) / CARD
    if not file.exists():
        raise UserError(
            f"{folder}: no export there (no {CARD} in it); make one: python export.py --run RUN --out {folder}"
        )
    card = read_json(file)
    if card.get("format") != FORMAT:
        raise UserError(
            f"{file}: of format {card.get('format')!r}, this code reads format {FORMAT}; export that run again"
        )
    wrong = [key for key, kind in KEYS.items() if key not in card or not _is(card[key], kind)]
    if not wrong:
        good = {"role": card["role"] in ("student", "teacher"), "bits": card["bits"] >= 1}
        wrong = [key for key, right in good.items() if not right]
    if wrong:
        raise UserError(f"{file}: damaged, no usable {', '.join(wrong)}; export that run again")
    return card


def _is(value: object, kind: type | UnionType) -> bool:
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)  # to Python True is a number


def may_ask(student: dict, database: dict) -> None:
    """Whether codes of one export may be looked up among codes of another; ``student`` and ``database``: their cards.

    Raises:
        UserError: they are not of one model, and it is not a student that asks the teacher who taught it.
    """
    if student["model_sha256"] == database["model_sha256"]:
        return
    if (
        database["role"] == "teacher"
        and student["teacher_head"] == database["head"]
        and student["bits"] == database["bits"]
    ):
        return
    raise UserError(
        f"the database was hashed by {_called(database)}, the query would be by {_called(student)}: their bits mean "
        "different things; ask with the export that hashed the database, or with a student of it"
    )


def _called(card: dict) -> str:
    return f"the {card['role']} {card['backbone']} of {card['bits']} bits (model {card['model_sha256'][:12]})"
