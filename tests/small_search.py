"""A small exported student for tests of the page: it hashes by brightness, in milliseconds, and needs no training."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from utils.files import write_json


def network() -> onnx.ModelProto:
    """uint8 [H, W, 3] -> uint8 [8]: each bit says whether one of 64 fields is brighter than their mean."""
    constants = {
        "to": np.array([32, 32, 3], np.int64),
        "batch": np.array([1, 1, 32, 32], np.int64),
        "flat": np.array([8, 8], np.int64),
        "channels": np.array([2], np.int64),
        "places": 2.0 ** np.arange(7, -1, -1, dtype=np.float32),
    }
    node = helper.make_node
    nodes = [
        node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        node("Resize", ["float", "", "", "to"], ["resized"], mode="nearest"),
        node("ReduceMean", ["resized", "channels"], ["gray"], keepdims=0),
        node("Reshape", ["gray", "batch"], ["picture"]),
        node("AveragePool", ["picture"], ["fields"], kernel_shape=[4, 4], strides=[4, 4]),
        node("ReduceMean", ["fields"], ["mean"], keepdims=0),
        node("GreaterOrEqual", ["fields", "mean"], ["brighter"]),
        node("Cast", ["brighter"], ["bits"], to=TensorProto.FLOAT),
        node("Reshape", ["bits", "flat"], ["rows"]),
        node("MatMul", ["rows", "places"], ["bytes"]),
        node("Cast", ["bytes"], ["code"], to=TensorProto.UINT8),
    ]
    graph = helper.make_graph(
        nodes,
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["H", "W", 3])],
        [helper.make_tensor_value_info("code", TensorProto.UINT8, [8])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def write_student(folder: Path, **more) -> Path:
    """An export folder, its card with ``more``."""
    folder.mkdir(parents=True, exist_ok=True)
    content = network().SerializeToString()
    (folder / "model.onnx").write_bytes(content)
    card = {
        "format": 1,
        "role": "student",
        "bits": 64,
        "method": "brightness",
        "backbone": "none",
        "backbone_sha256": "",
        "licence": "MIT",
        "size": 32,
        "crop": False,
        "precision": "float32",
        "head": "h",
        "teacher_head": None,
        "data": {"title": "none", "fingerprint": ""},
        "metrics": {},
        "flipped_bits": 0.0,
        "map_kept": 1.0,
        "model_sha256": hashlib.sha256(content).hexdigest(),
        "versions": {},
        "commit": "",
    }
    write_json(folder / "card.json", card | more)
    return folder
