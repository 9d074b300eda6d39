"""Goes on looking for faults: damaged files for every reader, kills at any moment, full and forbidden disks.

    python benchmarks/faults.py --minutes 20

A third of the time goes to mutated files, a half to kills, the rest to disks. What is drawn depends on --seed; how much
of it is done, on the time. Every damaged input must give the right result or one line that names the file, every
command that was stopped must end in the bits of an undisturbed run when it is run again. All else is a finding: it is
listed, its bytes are kept beside --out, and the exit status is 1.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

from fault_commands import COMMANDS, make_bench, server  # noqa: E402
from fault_disks import disks  # noqa: E402
from fault_inputs import Findings, look  # noqa: E402
from fault_kills import Undisturbed, kills  # noqa: E402

from utils.files import write_json  # noqa: E402
from utils.runs import environment  # noqa: E402

SHARES = {"inputs": 0.35, "kills": 0.5, "disks": 0.15}
GRID_SECONDS = 240  # of kills; a grid takes half a minute, so that shorter looks leave it out
JOBS = 2


def print_inputs(tallies: dict[str, dict]) -> None:
    print(f"\n{'reader':28} {'inputs':>8} {'right':>8} {'changed':>8} {'refused':>8} {'findings':>8}")
    total = Counter()
    for tally in tallies.values():
        total.update(tally)
    for name, tally in {**tallies, "all": total}.items():
        counts = (tally.get(key, 0) for key in ("inputs", "right", "changed", "refused", "finding"))
        print(f"{name:28} {' '.join(f'{count:8,}' for count in counts)}")


def print_kills(tallies: dict[str, dict]) -> None:
    print(f"\n{'kills of':28} {'kills':>8} {'too late':>8} {'litter':>8} {'findings':>8}")
    for name, tally in sorted(tallies.items()):
        print(f"{name:28} {tally['kills']:8,} {tally['late']:8,} {tally['litter']:8,} {tally['findings']:8,}")


def print_disks(tallies: dict) -> None:
    print(f"\n{'disk':28} {'tries':>8} {'refused':>8} {'findings':>8}")
    for kind, commands in tallies.items():
        if kind == "skipped":
            print(commands, end="")
            continue
        for name, tally in commands.items():
            print(f"{kind + ', ' + name:28} {tally['tries']:8,} {tally['refused']:8,} {tally['findings']:8,}")


def print_findings(listed: list[dict], folder: Path) -> None:
    print(f"\n{len(listed)} kinds of findings" + (f", bytes in {folder}" if listed else ""))
    for one in listed:
        print(f"- {one['reader']}, {one['count']} times: {one['what']}\n    by {one['mutations'][0][:200]}")


def search(minutes: float, seed: int, folder: Path) -> dict:
    """All three, one after the other; findings' bytes go to ``folder``."""
    context, findings, seconds = server(), Findings(folder), {k: 60 * minutes * s for k, s in SHARES.items()}
    inputs = look(context, seconds["inputs"], seed, findings, JOBS)
    print_inputs(inputs)
    names = [name for name in COMMANDS if name != "grid" or seconds["kills"] >= GRID_SECONDS]
    with tempfile.TemporaryDirectory(prefix="brcd_faults_") as top:
        bench = make_bench(Path(top) / "bench", context)
        undisturbed = Undisturbed(bench, bench.folder / "undisturbed")
        killed = kills(undisturbed, seconds["kills"], seed, findings, JOBS, names)
        print_kills(killed)
        disturbed = disks(undisturbed, seconds["disks"], seed, findings, JOBS)
        print_disks(disturbed)
    listed = findings.listed()
    print_findings(listed, folder)
    totals = {
        "inputs": sum(tally.get("inputs", 0) for tally in inputs.values()),
        "kills": sum(killed[key]["kills"] for key in ("forks", "real processes") if key in killed),
        "kinds_of_findings": len(listed),
        "findings": sum(one["count"] for one in listed),
    }
    return {"totals": totals, "inputs": inputs, "kills": killed, "disks": disturbed, "findings": listed}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20, help="how long to look, about")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "benchmarks" / "faults.json")
    args = parser.parse_args()
    out = args.out.resolve()
    folder = out.with_name(f"{out.stem}_findings")
    shutil.rmtree(folder, ignore_errors=True)
    result = search(args.minutes, args.seed, folder)
    facts = {"environment": environment(), "minutes": args.minutes, "seed": args.seed}
    write_json(out, facts | result)
    print(f"\nwrote {out}")
    sys.exit(1 if result["findings"] else 0)


if __name__ == "__main__":
    main()
