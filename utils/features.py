"""Features: computed once by a frozen backbone, kept on disk, opened as a memory map.

``python -m utils.features --list`` shows what the cache holds, ``--prune 5G`` deletes the longest unused entries
until it fits.
"""

import argparse
import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import queue
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed
from tqdm import tqdm

from utils import distributed
from utils.errors import UserError, guarded
from utils.runs import file_lock, write_json, written_aside

CHECKPOINT_SECONDS = 10  # work that a kill may cost an extraction
DTYPE, DTYPE_OF_ROWS = np.float16, torch.float16  # on disk, and as a tensor


def pick_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device(f"cuda:{distributed.local_rank()}" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device '{name}' is not supported; use auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: no CUDA GPU can be used here; use --device auto or cpu")
    if name == "cuda":  # not all processes of a machine on its first GPU
        return torch.device("cuda", distributed.local_rank())
    return device


class TorchEngine:
    """uint8 [B, 3, S, S] -> features float32 [B, D], by PyTorch in channels_last, autocast to ``precision``.

    ``compiled``: by torch.compile, which takes a minute at the first batch and needs a C++ compiler (CPU) or Triton.

    Raises:
        UserError: torch.compile cannot compile here.
    """

    def __init__(self, backbone: nn.Module, device: torch.device, precision: torch.dtype, compiled: bool = False):
        self.module = backbone.to(device, memory_format=torch.channels_last)
        self.device, self.precision = device, precision
        if compiled:
            self.module = torch.compile(self.module)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        if self.device.type == "cuda":
            images = images.pin_memory() if not images.is_cuda else images
        images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                return self.module(images).float()
        except BackendCompilerFailed as error:
            reason = str(error.inner_exception).strip().partition("\n")[0]
            raise UserError(f"--engine compile does not work here ({reason}); use --engine torch") from None


class OpenVINOEngine:
    """The same by OpenVINO, on a CPU several times faster than eager PyTorch; batches of one fixed size inside."""

    def __init__(self, backbone: nn.Module, size: int, precision: torch.dtype, batch_size: int):
        import openvino

        example = torch.zeros(2, 3, size, size, dtype=torch.uint8)  # small: tracing runs it in eager mode
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the converter traces, and tracing warns of what it is
            model = openvino.convert_model(backbone.cpu(), example_input=example)
        model.reshape([batch_size, 3, size, size])
        self.model, self.batch_size = model, batch_size
        self.compiled = openvino.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[
                    precision
                ],
                "PERFORMANCE_HINT": "LATENCY",  # one stream that uses every core, or this process's share of them
                "INFERENCE_NUM_THREADS": max(1, os.cpu_count() // distributed.local_size())
                if distributed.size() > 1
                else 0,
            },
        )

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        parts = []
        for part in images.cpu().split(self.batch_size):
            short = self.batch_size - len(part)
            padded = torch.cat([part, part[:1].expand(short, -1, -1, -1)]) if short else part
            features = self.compiled(padded.contiguous().numpy())[0]
            parts.append(torch.from_numpy(features[: len(part)].copy()))
        return torch.cat(parts)


def choose_engine(engine: str, precision: str, device: torch.device) -> tuple[str, torch.dtype]:
    """What "auto" means here: (engine, dtype).

    On CUDA auto is float16, on a CPU float32: bfloat16 is faster there, but moves EfficientNet-Lite's features by 5 %
    (results/benchmarks/features.json).
    """
    engines, precisions = ("auto", "torch", "compile", "openvino"), ("auto", "float32", "bfloat16", "float16")
    if engine not in engines or precision not in precisions:
        raise UserError(f"--engine takes one of {', '.join(engines)}; --precision one of {', '.join(precisions)}")
    if engine == "openvino" and device.type == "cuda":
        raise UserError("--engine openvino runs on the CPU; use --device cpu with it, or --engine torch")
    if engine == "auto":
        engine = "openvino" if device.type == "cpu" else "torch"
    if precision == "auto":
        precision = "float16" if device.type == "cuda" else "float32"
    return engine, getattr(torch, precision)


def engine_version(engine: str) -> str:
    """Name and version: another version's features differ in their last bits."""
    package = "torch" if engine == "compile" else engine
    return f"{engine} {importlib.metadata.version(package)}"


def make_engine(
    backbone: nn.Module, size: int, device: torch.device, engine: str, precision: torch.dtype, batch_size: int
) -> Callable[[torch.Tensor], torch.Tensor]:
    if engine == "openvino":
        return OpenVINOEngine(backbone, size, precision, batch_size)
    return TorchEngine(backbone, device, precision, engine == "compile")


def one_late(batches: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The batches as float16 on the CPU, each waited for when the next is on its way: a GPU never stands still."""
    waiting = None
    for batch in batches:
        copy = batch.to("cpu", DTYPE_OF_ROWS, non_blocking=True)
        arrived = torch.cuda.current_stream(batch.device).record_event() if batch.is_cuda else None
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = copy, arrived
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(copy: torch.Tensor, event) -> torch.Tensor:
    if event is not None:
        event.synchronize()
    return copy


def prefetch(batches: Iterable, depth: int = 2) -> Iterator:
    """The same items, made by a thread while the caller works on the one before."""
    done, failed = object(), []
    items: queue.Queue = queue.Queue(depth)
    stop = threading.Event()

    def put(item) -> None:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                return items.put(item, timeout=0.1)

    def work() -> None:
        try:
            for item in batches:
                put(item)
                if stop.is_set():
                    return
        except BaseException as error:  # raised again in the caller's thread
            failed.append(error)
        put(done)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (item := items.get()) is not done:
            yield item
        if failed:
            raise failed[0]
    finally:
        stop.set()
        thread.join()


class FeatureCache:
    """Arrays of features on disk, each named by a hash of all the facts that determine it.

    An entry grows row by row and counts as complete up to what ``rows.json`` says, which is written after the rows
    are on the disk; so a half-written entry is never read, and an interrupted extraction goes on where it was.
    More rows of the same facts (more views of a bank) are appended to the entry that has fewer.
    """

    def __init__(self, folder: Path, limit: int | None = None):
        self.folder, self.limit = Path(folder), limit

    def get(
        self, facts: dict, rows: int, dim: int, extract: Callable[[int], Iterable[torch.Tensor]], title: str
    ) -> np.memmap:
        """Rows 0..rows of the entry that ``facts`` name, float16 [rows, dim], read-only.

        Args:
            facts: everything the values depend on, as plain values.
            extract: called with the first missing row; yields feature batches from there on.
            title: of the progress bar.
        """
        name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
        entry = self.folder / name
        entry.mkdir(parents=True, exist_ok=True)
        data = entry / "features.bin"
        if not all(distributed.gather(self._complete(entry, dim) >= rows)):
            if distributed.is_first():
                with file_lock(entry / "lock"):  # of several runs one extracts, the others wait
                    start = distributed.from_first(self._complete(entry, dim))
                    if start < rows:
                        write_json(entry / "facts.json", facts)
                        self._append(data, entry / "rows.json", start, rows, dim, extract, title)
            elif (start := distributed.from_first(None)) < rows:
                for _ in extract(start):  # rank 0 writes
                    pass
            distributed.from_first(None)  # all wait until rank 0 has written
            if min(distributed.gather(self._complete(entry, dim))) < rows:
                raise UserError(f"{entry}: not every process sees it; put --cache-dir on storage that all share")
        os.utime(entry)
        if self.limit is not None and distributed.is_first():
            prune(self.folder, self.limit, keep=name)
        return np.memmap(data, dtype=DTYPE, mode="r", shape=(rows, dim))

    @staticmethod
    def _complete(entry: Path, dim: int) -> int:
        try:
            rows = json.loads((entry / "rows.json").read_text())
            there = (entry / "features.bin").stat().st_size // (dim * DTYPE().itemsize)
            return min(int(rows), there)
        except (FileNotFoundError, ValueError):
            return 0

    @staticmethod
    def _append(data: Path, marker: Path, start: int, rows: int, dim: int, extract, title: str) -> None:
        def mark(file, count: int) -> None:
            file.flush()
            os.fsync(file.fileno())
            with written_aside(marker, "w") as out:
                out.write(str(count))

        with open(data, "ab") as file, tqdm(total=rows, initial=start, desc=title, unit="img") as bar:
            file.truncate(start * dim * DTYPE().itemsize)
            done, last = start, time.monotonic()
            for features in extract(start):
                if not torch.isfinite(features).all():
                    raise UserError(
                        f"{title}: the backbone gave NaN or infinite features; check its weights and "
                        "--precision float32"
                    )
                file.write(features.cpu().numpy().astype(DTYPE).tobytes())
                done += len(features)
                bar.update(len(features))
                if time.monotonic() - last > CHECKPOINT_SECONDS:
                    mark(file, done)
                    last = time.monotonic()
            assert done == rows, f"{title}: {done} rows came, {rows} were asked for"
            mark(file, done)


def entries(folder: Path) -> list[dict]:
    """What a cache holds, longest unused first."""
    found = []
    for facts in Path(folder).glob("*/facts.json"):
        entry = facts.parent
        data = entry / "features.bin"
        found.append(
            {
                "name": entry.name,
                "bytes": data.stat().st_size if data.exists() else 0,
                "used": entry.stat().st_mtime,
                "facts": json.loads(facts.read_text()),
            }
        )
    return sorted(found, key=lambda e: e["used"])


def prune(folder: Path, limit: int, keep: str | None = None) -> list[dict]:
    """Delete the longest unused entries until the cache is at most ``limit`` bytes; returns what went.

    An entry that a process is extracting into (its lock is held) stays. Memory maps open elsewhere stay valid.
    """
    held = entries(folder)
    total, gone = sum(e["bytes"] for e in held), []
    for entry in held:
        if total <= limit:
            break
        if entry["name"] == keep:
            continue
        path = Path(folder) / entry["name"]
        with open(path / "lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            shutil.rmtree(path)
        total -= entry["bytes"]
        gone.append(entry)
    return gone


def parse_size(text: str) -> int:
    """ "800M", "5G" or plain bytes."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(float(number) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 800M, 5G or a number of bytes") from None


def _table(found: list[dict]) -> str:
    lines = [f"{'entry':32}  {'MB':>8}  {'last used':16}  what"]
    for e in found:
        what = " ".join(f"{k}={v}" for k, v in e["facts"].items() if isinstance(v, (str, int)) and len(str(v)) < 24)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(e["used"]))
        lines.append(f"{e['name']}  {e['bytes'] / 1e6:8.1f}  {when}  {what}")
    return "\n".join([*lines, f"{len(found)} entries, {sum(e['bytes'] for e in found) / 1e6:,.1f} MB"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"))
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--list", action="store_true", help="show the entries, longest unused first")
    group.add_argument("--prune", type=parse_size, metavar="SIZE", help="delete longest unused entries down to SIZE")
    args = parser.parse_args()
    if args.list:
        print(_table(entries(args.cache_dir)))
    else:
        print("deleted:\n" + _table(prune(args.cache_dir, args.prune)))


if __name__ == "__main__":
    guarded(main)
