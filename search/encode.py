"""Hash very many pictures by an exported student, on this machine's cores or on a Ray cluster.

python -m search.encode --student student/ --input PICTURES --out CODES, then python -m search add --codes CODES
"""

import argparse
import logging
import os
import time
import warnings
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data.decode import PIXELS
from models.exported import Exported
from search.encoding import Encoder, Output, broken_in, broken_name, part_name, read_plan, write_plan
from search.pictures import Part, is_url, parts_of
from utils.cluster import check_address, ray_on
from utils.errors import UserError, guarded, many, some
from utils.files import held_alone
from utils.machine import cores
from utils.options import Parser, named, real, whole

BLOCKS = 100  # a worker: how finely the parts are shared out
RETRIES = 3  # of a part whose worker died: a picture that kills each worker must not do so for ever
CORES = cores()


def planned(args: argparse.Namespace, out: Output, model: str) -> list[Part]:
    """The parts of this job: listed once, then read back, so that a job which goes on has the same ones.

    Raises:
        UserError: the folder is of another job.
    """
    inputs = [name if is_url(name) else os.path.abspath(name) for name in args.input]
    facts = {"inputs": inputs, "column": args.column, "part": args.part, "thumbnails": args.thumbnails}
    facts |= {"model_sha256": model, "pixels": PIXELS}
    if "plan.parquet" in out.names():
        parts, before = read_plan(out)
        if odd := [key for key in facts if facts[key] != before.get(key)]:
            raise UserError(f"{out.folder}: holds codes of other {some(odd)}; choose another --out")
        return parts
    listed = tqdm(chain.from_iterable(parts_of(i, args.part, args.column) for i in inputs), "listing", unit="part")
    write_plan(out, listed, facts)
    return read_plan(out)[0]


def missing(out: Output, n_parts: int, again: bool = False) -> list[int]:
    """Numbers of the parts that are to be made; with ``again`` those too that have broken pictures."""
    there = out.names()
    return [n for n in range(n_parts) if part_name(n) not in there or (again and broken_name(n) in there)]


def encode_all(args: argparse.Namespace, out: Output, parts: list[Part], numbers: list[int]) -> int:
    """Share parts out to workers, each with one student; how many pictures were hashed."""
    coded = broken = 0
    with ray_on(args.ray, args.workers or CORES) as ray, tqdm(total=len(numbers), desc="encoding", unit="part") as bar:
        there = ray.cluster_resources()
        workers = args.workers or int(there.get("GPU", 0) / args.gpus if args.gpus else there["CPU"])
        if not workers:
            raise UserError("--gpus: Ray sees no GPU there")
        for row in shared_out(args, out, [{"number": n, **asdict(parts[n])} for n in numbers], workers):
            if row["error"]:
                raise UserError(row["error"])
            coded, broken = coded + row["coded"], broken + row["broken"]
            bar.set_postfix(pictures=coded, broken=broken, refresh=False)
            bar.update()
    return coded


def shared_out(args: argparse.Namespace, out: Output, rows: list[dict], workers: int) -> Iterable[dict]:
    """What ``Encoder`` gives for each row, in the order in which they are done; a dead worker's are done by another."""
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells of each step
    ray.data.DataContext.get_current().enable_progress_bars = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # max_task_retries goes with Ray 2.64
        done = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS * workers)).map(
            Encoder,  # type: ignore[arg-type]  # Ray's stub has no classes
            fn_constructor_args=(os.path.abspath(args.student), out.folder, args.thumbnails, bool(args.gpus)),
            # One at a time: no part waits for a worker while another has none to do.
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows)), max_tasks_in_flight_per_actor=1),
            num_cpus=0 if args.gpus else 1,
            num_gpus=args.gpus or None,
            max_task_retries=RETRIES,
        )
    return done.iter_rows()


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, required=True, help="folder that export.py wrote")
    parser.add_argument(
        "--input",
        type=named,
        nargs="+",
        required=True,
        help="folders of pictures, lists (.txt, .csv), tables (.parquet), shards (.tar): paths, URLs, patterns with *",
    )
    parser.add_argument("--out", type=named, required=True, help="folder of the codes, by path or URL")
    parser.add_argument("--column", type=named, help="of tables: where the pictures or their addresses are")
    parser.add_argument("--part", type=whole(1), default=1000, help="pictures a part; a shard is one, however large")
    parser.add_argument("--thumbnails", action="store_true", help="keep small JPEGs too, as python -m search add does")
    parser.add_argument("--ray", type=named, help="address of a Ray cluster; without it this machine alone works")
    parser.add_argument("--workers", type=whole(1), help="students at work; default: one a core, or as GPUs allow")
    parser.add_argument("--gpus", type=real(0), default=0, help="share of a CUDA GPU a worker; 0: a core")
    parser.add_argument("--again", action="store_true", help="do parts again that had pictures that can't be read")
    args = parser.parse_args()
    student = Exported(args.student, gpu=bool(args.gpus and not args.ray))  # else other machines' GPUs are meant
    out = Output(args.out)
    if args.ray:
        check_address(args.ray)
    lock = None if is_url(out.folder) else held_alone(Path(out.folder))  # as long as this process lives
    parts = planned(args, out, student.hash)
    out.write("card.json", (args.student / "card.json").read_bytes())
    numbers, start = missing(out, len(parts), args.again), time.perf_counter()
    coded = encode_all(args, out, parts, numbers) if numbers else 0
    if left := missing(out, len(parts)):
        raise UserError(f"{out.folder}: {len(left)} parts are not seen here; --out must be on storage that all share")
    seconds = time.perf_counter() - start
    print(
        f"{out.folder}: {len(parts)} parts, {len(parts) - len(numbers)} of them from before; {many(coded, 'picture')} "
        f"hashed to {student.bits} bits in {seconds:,.0f} s"
    )
    if broken := broken_in(out, len(parts)):
        print(f"{many(broken, 'picture')} can't be read; {out.folder}/broken-*.parquet say why, --again tries again")
    del lock


if __name__ == "__main__":
    guarded(main)
