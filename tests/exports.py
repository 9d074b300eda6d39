"""Exports that are made in a moment: a random projection of eight by eight pixels, as ONNX, with a card."""

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

GRID = 8


def write_export(folder: Path, bits: int = 64, seed: int = 0, **card) -> Path:
    """model.onnx and card.json as ``models.exported`` reads them; equal arguments make equal models.

    Args:
        seed: of the projection: another is another model.
        card: what is to be otherwise on the card.
    """
    width = -(-bits // 8)
    weights = np.random.RandomState(seed).randn(GRID * GRID * 3, bits).astype(np.float32)
    places = np.zeros((bits, width), np.float32)  # bit -> its value in its byte, the first bit highest
    places[np.arange(bits), np.arange(bits) // 8] = 128 >> (np.arange(bits) % 8)
    constants = {
        "sizes": np.array([GRID, GRID, 3], np.int64),
        "flat": np.array([1, GRID * GRID * 3], np.int64),
        "one": np.array([width], np.int64),
        "weights": weights,
        "places": places,
        "zero": np.zeros(1, np.float32),
    }
    steps = [
        helper.make_node("Resize", ["image", "", "", "sizes"], ["small"], mode="nearest"),
        helper.make_node("Cast", ["small"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["numbers", "flat"], ["row"]),
        helper.make_node("ReduceMean", ["row"], ["mean"]),
        helper.make_node("Sub", ["row", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["logits"]),
        helper.make_node("GreaterOrEqual", ["logits", "zero"], ["signs"]),
        helper.make_node("Cast", ["signs"], ["ones"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["ones", "places"], ["bytes"]),
        helper.make_node("Reshape", ["bytes", "one"], ["packed"]),
        helper.make_node("Cast", ["packed"], ["code"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        steps,
        "projection",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info("code", TensorProto.UINT8, [width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    content = model.SerializeToString()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(content)
    facts = {
        "format": 1,
        "role": "student",
        "bits": bits,
        "method": "none",
        "backbone": f"projection {seed}",
        "backbone_sha256": hashlib.sha256(weights.tobytes()).hexdigest(),
        "licence": "MIT",
        "size": GRID,
        "crop": False,
        "precision": "float32",
        "head": hashlib.sha256(f"{seed} {bits}".encode()).hexdigest(),
        "teacher_head": None,
        "data": {"title": "made up", "fingerprint": "0" * 64},
        "metrics": {},
        "flipped_bits": 0.0,
        "map_kept": 1.0,
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "versions": {},
        "commit": "unknown",
    }
    (folder / "card.json").write_text(json.dumps(facts | card))
    return folder
