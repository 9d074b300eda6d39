"""What test_devices.py runs in a process of its own: methods and recipe on an emulated GPU, and on the CPU.

python tests/on_emulated.py steps|waits|"fresh views"|"banked views" FOLDER
"""

import contextlib
import io
import itertools
import runpy
import sys
from pathlib import Path

ROOT, W = Path(__file__).resolve().parent.parent, Path(sys.argv[2])
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import emulated_device  # noqa: E402

emulated_device.install()

import torch  # noqa: E402
from torch import nn  # noqa: E402

from data.views import BankedViews  # noqa: E402
from distill import Step  # noqa: E402
from losses.hashing import HASHING  # noqa: E402
from losses.methods import METHODS, BRCDOptions, Knowledge, build_method  # noqa: E402
from models.heads import HashHead  # noqa: E402
from utils.seeds import generator, seeded  # noqa: E402
from utils.training import train_epoch  # noqa: E402

N, BATCH, BITS, DIM = 24, 12, 16, 20


def training(device: torch.device, method: str, hashing: str):
    """(a function that trains for one epoch of two steps, what it trains)"""
    draw = generator("banks")

    def bank(width: int, views: int = 3) -> torch.Tensor:
        return torch.randn(views, N, width, generator=draw)

    turned = [[bank(w, 2) for _ in range(4)] for w in (DIM, BITS)] if METHODS[method].rotations else []
    views = BankedViews([bank(DIM).half().numpy(), bank(BITS)], 0, turned, device)
    masks = torch.randint(2, (3, BITS), generator=draw)
    known = Knowledge(torch.randint(3, (N,), generator=draw), bank(BITS)[0][:3], masks)
    head = HashHead(DIM, BITS, "mlp").to(device)
    with seeded(method):
        loss = build_method(method, BITS, N, known, BRCDOptions(clusters=3)).to(device)
    step = Step(head, HASHING[hashing](temperature=0.3, kl_weight=0.001), loss, 1.0, device)
    modules = nn.ModuleDict({"head": head, "method": loss})
    optimizer = torch.optim.Adam(modules.parameters(), lr=1e-2, fused=True)
    return lambda e: train_epoch(modules, optimizer, (step(b, draw) for b in views.epoch(e, BATCH))), modules


def steps() -> None:
    """Every method and objective: the CPU's terms and weights, to the bit."""
    for method, hashing in itertools.product(METHODS, HASHING):
        (cpu, held), (gpu, there) = (training(torch.device(d), method, hashing) for d in ("cpu", "cuda"))
        assert cpu(1) == gpu(1), (method, hashing)
        state = there.state_dict()
        assert all(torch.equal(v, state[k].cpu()) for k, v in held.state_dict().items()), (method, hashing)


def waits() -> None:
    """No step of any method waits for the device: an epoch of two steps waits once for each term, at its end."""
    for method in METHODS:
        epoch, _ = training(torch.device("cuda"), method, "cibhash")
        epoch(1)  # the first makes Adam's state
        with emulated_device.counted() as count:
            terms = epoch(2)
        kinds = {}
        for (kind, what, where), n in count.items():
            late = kind == "to device" and "waits" in what
            kinds.setdefault("pageable" if late else kind, []).extend([f"{what} at {where}"] * n)
        waiting = kinds.get("wait", []) + kinds.get("to cpu", [])
        assert len(waiting) <= 2 * len(terms), (method, waiting)
        assert not kinds.get("pageable"), (method, kinds["pageable"])
        print(method, {kind: len(lines) for kind, lines in kinds.items()})


def command(script: str, *words) -> None:
    said, sys.argv = io.StringIO(), [script, *map(str, words)]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise RuntimeError(f"{stop.code}: {said.getvalue()[-2000:]}") from None


def trained(device: str, views: int, method: list, kill: bool = False) -> list[bytes]:
    """Teacher, student and evaluation; with ``kill`` the student is stopped after two epochs and resumed."""
    folder = W / f"{device}_{views}"
    common = ["--dataset", "digits", "--limit", 20, "--size", 32, "--views", views, "--engine", "torch"]
    common += ["--device", device, "--precision", "float32", "--batch-size", 10, "--cache-dir", W / f"cache_{device}"]
    common += ["--epochs", 3, "--validate-every", 1]
    teach = [*common, "--backbone", "efficientnet_lite1", "--bits", 8, "--run-dir", folder / "t"]
    command("train_teacher.py", *teach)
    learn = [*common, "--teacher", folder / "t", "--student", "efficientnet_lite0", "--run-dir", folder / "s"]
    if kill:
        step, taken = torch.optim.Adam.step, itertools.count()

        def dies(self, *args, **kwargs):
            if next(taken) == 4:
                raise KeyboardInterrupt
            return step(self, *args, **kwargs)

        torch.optim.Adam.step = dies
        with contextlib.suppress(RuntimeError):
            command("distill.py", *learn, "--method", *method)
        torch.optim.Adam.step = step
        assert (folder / "s" / "last.pt").exists() and not (folder / "s" / "summary.json").exists()
    command("distill.py", *learn, "--method", *method, "--resume")
    command("evaluate.py", "--run", folder / "s", "--pictures", 0)
    return [(folder / file).read_bytes() for file in ("t/log.csv", "s/log.csv", "s/test.csv")]


def recipe(views: int, *method) -> None:
    """Both training commands and evaluation, also resumed: the CPU's logs, to the byte."""
    words = [*method, "--bn", "recalibrate"]
    assert trained("cuda", views, words, kill=True) == trained("cpu", views, words)


match sys.argv[1]:
    case "steps":
        steps()
    case "waits":
        waits()
    case "fresh views":
        recipe(0, "sskd")
    case "banked views":
        recipe(2, "brcd", "--clusters", 2)
print("all equal")
