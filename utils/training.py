"""The one training loop: heads are small, so it logs, validates, keeps the best and can be killed at any moment."""

import argparse
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import distributed
from utils.checkpoints import read_checkpoint, save_atomically
from utils.errors import UserError, first_line, naming
from utils.options import COLUMN, FREE, Group, one_of, real, whole
from utils.runs import Run

KIND = "brcd-training"
LR_SCHEDULES = ("cosine",)
SELECT_BY = ("labels", "features")
SAVE_SECONDS = 30  # work that a kill may cost between two validations


@dataclass(frozen=True)
class Schedule:
    """How long to train: validate every so many epochs, stop after more than ``patience`` without a better one; under
    "cosine" the learning rate falls to almost 0 by the last epoch (Loshchilov & Hutter, arXiv 1608.03983)."""

    epochs: int
    validate_every: int
    patience: int
    lr_schedule: str | None = None


def add_training_arguments(group: Group, schedule: Schedule, lr: float) -> None:
    """The options of any training command, with its own defaults."""
    group.add_argument("--lr", type=real(0), default=lr, help="Adam's learning rate")
    group.add_argument("--lr-schedule", type=one_of(LR_SCHEDULES), help="cosine: falls to 0 (default: stays)")
    group.add_argument("--batch-size", type=whole(1), default=64, help="images a step")
    group.add_argument("--epochs", type=whole(1), default=schedule.epochs, help="at most")
    group.add_argument("--validate-every", type=whole(1), default=schedule.validate_every, help="epochs")
    group.add_argument(
        "--patience",
        type=whole(0),
        default=schedule.patience,
        help="stop after more validations than this without a better one",
    )
    group.add_argument(
        "--select-by",
        type=one_of(SELECT_BY),
        default="labels",
        help="how checkpoints are selected: by labels, if there are any; or as of photos, by what features find",
    )
    group.add_argument("--seed", type=whole(0, 2**32 - 1), default=0, help="of all that training draws", marks={COLUMN})
    group.add_argument("--run-dir", type=Path, required=True, help="folder of the run", marks={FREE})
    group.add_argument(
        "--resume", action="store_true", help="go on with the run in --run-dir, if there is one", marks={FREE}
    )


def schedule_of(args: argparse.Namespace) -> Schedule:
    return Schedule(args.epochs, args.validate_every, args.patience, args.lr_schedule)


def fit(
    run: Run,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Callable[[int], Iterable[dict[str, torch.Tensor]]],
    validate: Callable[[], dict[str, float]],
    save_best: Callable[[Path, int, dict[str, float]], None],
    schedule: Schedule,
) -> dict:
    """Train until the schedule ends or no watched metric gets better.

    Args:
        module: all that is trained or carried from step to step (heads, memories).
        steps: epoch -> batches' terms; "loss" is minimised, all are logged.
        validate: metrics, higher is better; each keeps its own best checkpoint, best_NAME.pt.
        save_best: writes such a checkpoint: (path, epoch, metrics).

    Returns:
        best value and epoch of each metric, epochs run, seconds.

    Raises:
        UserError: the loss is not finite; the folder keeps the last good state.
    """
    best: dict[str, dict] = {}
    stale, first, seconds = 0, 0, 0.0
    last = run.path("last.pt")
    state = distributed.from_first(read_checkpoint(last, KIND) if last.exists() else None)
    if state is not None:
        try:
            best, stale, first, seconds, run.rows = (state[k] for k in ("best", "stale", "epoch", "seconds", "rows"))
            sound = type(stale) is type(first) is int and stale >= 0 <= seconds and bool(state["optimizer"]["state"])
            sound = sound and [row["epoch"] for row in run.rows] == list(range(1, first + 1))
            sound = sound and all(math.isfinite(b["value"]) and 0 < b["epoch"] <= first for b in best.values())
            if not sound or not all(value.isfinite().all() for value in state["module"].values()):
                raise ValueError("its parts do not fit together")
            module.load_state_dict(state["module"])
            optimizer.load_state_dict(state["optimizer"])
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError(f"{last}: incomplete ({first_line(error)}); delete it to begin that run again") from None
        run.write_log()  # a kill may have come between the last checkpoint and its log
        print(f"resuming after epoch {first}")
    stopped = stale > schedule.patience
    started = saved = time.monotonic()

    def save(epoch: int) -> None:
        save_atomically(
            last,
            {
                "kind": KIND,
                "module": module.state_dict(),
                "optimizer": optimizer.state_dict(),
                "best": best,
                "stale": stale,
                "epoch": epoch,
                "seconds": seconds + time.monotonic() - started,
                "rows": run.rows,
            },
        )

    with (
        naming(run.folder),
        SummaryWriter(run.path("tensorboard"), purge_step=first + 1) as board,
        tqdm(total=schedule.epochs, initial=first, desc="training", unit="epoch") as bar,
    ):
        for epoch in range(first + 1, schedule.epochs + 1):
            if stopped:
                break
            if schedule.lr_schedule == "cosine":  # of the epoch alone, so that a resumed run meets the same
                for group in optimizer.param_groups:
                    group["lr"] = optimizer.defaults["lr"] * (1 + math.cos(math.pi * (epoch - 1) / schedule.epochs)) / 2
            row = {"epoch": epoch, **train_epoch(module, optimizer, steps(epoch))}
            if not all(map(math.isfinite, row.values())) or not all(p.isfinite().all() for p in module.parameters()):
                raise UserError(
                    f"epoch {epoch}: the loss or a weight is not finite ({row}); lower --lr or raise --temperature. "
                    f"{run.folder} keeps the state after the last validation"
                )
            validated = epoch % schedule.validate_every == 0 or epoch == schedule.epochs
            if validated:
                metrics = validate()
                better = [name for name, value in metrics.items() if value > best.get(name, {"value": -1})["value"]]
                for name in better:
                    best[name] = {"value": metrics[name], "epoch": epoch}
                    save_best(run.path(f"best_{name}.pt"), epoch, metrics)
                stale = 0 if better else stale + 1
                stopped = stale > schedule.patience
                row |= metrics
            run.rows.append(row)
            for name, value in row.items():
                if name != "epoch":
                    board.add_scalar(name, value, epoch)
            shown = {k: f"{v:.4f}" for k, v in row.items() if k != "epoch"} | {"stale": stale}
            bar.set_postfix(shown, refresh=False)  # update() draws, no oftener than the bar's interval
            bar.update()
            if validated or time.monotonic() - saved > SAVE_SECONDS:
                save(epoch)
                run.write_log()
                saved = time.monotonic()
    return {
        "best": best,
        "epochs": run.rows[-1]["epoch"],
        "early_stop": stopped,
        "seconds": round(seconds + time.monotonic() - started, 1),
    }


def train_epoch(module: nn.Module, optimizer: torch.optim.Optimizer, steps: Iterable[dict]) -> dict[str, float]:
    """One pass; the mean of every term. Terms stay on their device until the end: no step waits for a number."""
    module.train()
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for terms in steps:
        optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        optimizer.step()
        count += 1
        for name, value in terms.items():
            sums[name] = sums.get(name, 0) + value.detach()
    return {name: (value / count).item() for name, value in sums.items()}
