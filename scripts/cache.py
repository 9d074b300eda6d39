"""The cache of features: ``python -m scripts.cache --list`` shows what it holds, ``--prune 5G`` deletes the longest
unused entries until it fits.
"""

import time
from pathlib import Path

from utils.cache import entries, prune
from utils.errors import UserError, guarded
from utils.options import Parser, parse_size


def _table(listed: list[dict]) -> str:
    lines = [f"{'entry':32}  {'MB':>8}  {'last used':16}  what"]
    for e in listed:
        what = " ".join(f"{k}={v}" for k, v in e["facts"].items() if isinstance(v, (str, int)) and len(str(v)) < 24)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(e["used"]))
        lines.append(f"{e['name']}  {e['bytes'] / 1e6:8.1f}  {when}  {what}")
    return "\n".join([*lines, f"{len(listed)} entries, {sum(e['bytes'] for e in listed) / 1e6:,.1f} MB"])


def main() -> None:
    parser = Parser(__doc__.splitlines()[0])
    parser.add_argument("--cache-dir", type=Path, default=Path("cache"), help="where features are kept")
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument("--list", action="store_true", help="show the entries, longest unused first")
    group.add_argument("--prune", type=parse_size, metavar="SIZE", help="delete longest unused entries down to SIZE")
    args = parser.parse_args()
    if not args.cache_dir.is_dir():
        raise UserError(f"--cache-dir {args.cache_dir}: no such folder")
    if args.list:
        print(_table(entries(args.cache_dir)))
    else:
        print("deleted:\n" + _table(prune(args.cache_dir, args.prune)))


if __name__ == "__main__":
    guarded(main)
