"""Search pictures by pictures: an index of folders, hashed by an exported model, asked on the command line.

python -m search add --index my.index --student EXPORT FOLDER...
python -m search query --index my.index PICTURE... -k 20
python -m search serve --index my.index
"""

import argparse
import calendar
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.decode import pixels_of
from data.tree import EXCLUDED, counted
from models.exported import Exported
from search import adding, asking, copies, engines, montage
from search.engines import open_index
from search.index import Filters, Index
from search.index import named as called
from utils.errors import UserError, guarded, many, printable, some
from utils.files import written_aside
from utils.options import Parser, named, whole

NAMED = 5  # files that could not be read, of which each is named; info names all
EXPORTS = (".npz", ".parquet")
PART = 65536  # pictures a part of a Parquet file


def parse() -> argparse.Namespace:
    parser = Parser(__doc__.splitlines()[0])
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def command(run: Callable[[argparse.Namespace], None]) -> Parser:
        """The options of a command, which is called what its function is."""
        text = str(run.__doc__).splitlines()[0]
        options = commands.add_parser(run.__name__.replace("_", "-"), description=text, help=text)
        if run is not copy:
            what = "the index: a file, or milvus://HOST:PORT/NAME"
            options.add_argument("--index", type=named, required=True, metavar="INDEX", help=what)
        options.set_defaults(run=run)
        return options

    def approximate(options: Parser) -> None:
        options.add_argument(
            "--approximate",
            type=whole(1, 65536),
            nargs="?",
            const=engines.NPROBE,
            metavar="LISTS",
            help=f"of Milvus: look at so many of the nearest lists of codes only, and say with what recall "
            f"({engines.NPROBE} if no number is given)",
        )

    options = command(add)
    options.add_argument(
        "roots", nargs="*", type=Path, metavar="FOLDER", help="with all pictures below it; or a picture"
    )
    options.add_argument("--student", type=Path, metavar="EXPORT", help="what hashes them: a folder of export.py")
    options.add_argument("--codes", metavar="CODES", help="in place of FOLDER: what python -m search.encode has hashed")
    options.add_argument("--prune", action="store_true", help="forget pictures that are gone")
    options.add_argument("--yes", action="store_true", help="with --prune: also more than a tenth, or all of a folder")
    options.add_argument(
        "--exclude",
        type=named,
        nargs="+",
        default=[],
        metavar="PATTERN",
        help=f"folders that are passed over, beside {', '.join(EXCLUDED[:4])} and others that info names",
    )
    options.add_argument("--threads", type=whole(1), help="that decode and hash (default: the cores)")
    options.add_argument(
        "--approximate", action="store_true", help="of Milvus: then make the lists that query --approximate needs"
    )

    options = command(query)
    options.add_argument("pictures", nargs="+", type=Path, metavar="PICTURE")
    options.add_argument(
        "--student", type=Path, metavar="EXPORT", help="what hashes the queries (default: what hashed the index)"
    )
    options.add_argument("-k", type=whole(1), default=20, help="nearest pictures that are shown")
    options.add_argument(
        "--radius", type=whole(0), metavar="BITS", help="of these only those at most so many bits away"
    )
    options.add_argument("--within", type=named, metavar="FOLDER", help="only pictures in it or below it")
    options.add_argument("--label", help="only pictures in folders of this name")
    options.add_argument("--after", type=moment, metavar="DATE", help="only pictures taken then or later: 2024-05-31")
    options.add_argument("--before", type=moment, metavar="DATE", help="only pictures taken earlier")
    options.add_argument("--unique", action="store_true", help="of files with the same bytes only the first added")
    approximate(options)
    options.add_argument("--json", action="store_true", help="print JSON, one object a query")
    options.add_argument("--montage", type=picture_file, metavar="FILE.png", help="draw queries and hits")

    options = command(serve)
    options.add_argument("--student", type=Path, metavar="EXPORT", help="what hashes the queries (default: as query)")
    approximate(options)
    options.add_argument("--host", type=named, default="127.0.0.1", help="address to serve on; 0.0.0.0: every one")
    options.add_argument("--port", type=whole(0, 65535), default=8000, help="0: any that is free")
    options.add_argument(
        "--allow-host", nargs="+", default=[], metavar="NAME", help="names by which the server may be asked as well"
    )

    options = command(site)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where it goes")
    options.add_argument("--student", type=Path, metavar="EXPORT", help="what hashes the queries (default: as query)")
    options.add_argument(
        "--ort", metavar="FOLDER", help="ONNX Runtime Web's files, or the address of some (default: npm gets them)"
    )
    options.add_argument("--cache-dir", type=Path, default=Path("cache"), help="where those that npm gets are kept")

    options = command(duplicates)
    options.add_argument("--out", type=Path, default=Path("duplicates.csv"), metavar="FILE.csv", help="the list")

    options = command(info)
    options.add_argument("--json", action="store_true", help="print JSON")

    options = command(check)
    options.add_argument("--files", action="store_true", help=f"read every file, not a sample of {adding.SAMPLE}")

    options = command(export_codes)
    options.add_argument(
        "--out", type=codes_file, required=True, metavar="FILE", help=f"ends in {' or '.join(EXPORTS)}"
    )

    options = command(remove)
    options.add_argument(
        "paths", nargs="+", type=named, metavar="PATH", help="of a picture, or a folder with all below it"
    )

    options = command(move)
    options.add_argument("old", type=named, metavar="OLD", help="the folder that they lay in")
    options.add_argument("new", type=named, metavar="NEW", help="where it is now")

    options = command(copy)
    options.add_argument(
        "--from", dest="source", type=named, required=True, metavar="INDEX", help="a file, or milvus://…"
    )
    options.add_argument("--to", type=named, required=True, metavar="INDEX", help="made where there is none")
    return parser.parse_args()


def moment(text: str) -> float:
    """Type of an option that is a date or a time, as a clock showed it where the picture was taken."""
    try:
        return calendar.timegm(datetime.fromisoformat(text).timetuple())
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"'{text}' is no date; write 2024-05-31 or 2024-05-31T18:00") from None


def picture_file(text: str) -> Path:
    if not text.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"'{text}' does not end in .png")
    return Path(text)


def codes_file(text: str) -> Path:
    if not text.endswith(EXPORTS):
        raise argparse.ArgumentTypeError(f"'{text}' does not end in {' or '.join(EXPORTS)}")
    return Path(text)


def absolute(name: str) -> str:
    """As the index has it: a path from the root, or a URL; what is there by its real path."""
    if "://" in name and not name.startswith("/"):
        return name
    folder, last = os.path.split(os.path.abspath(name))
    return os.path.realpath(name) if os.path.isdir(name) else os.path.join(os.path.realpath(folder), last)


def add(args: argparse.Namespace) -> None:
    """Add pictures that are new or changed, or codes that python -m search.encode made."""
    if bool(args.codes) == bool(args.roots) or bool(args.student) != bool(args.roots):
        raise UserError("what is to be added? FOLDER... and --student EXPORT, or --codes CODES")
    if args.approximate and not engines.is_milvus(args.index):
        raise UserError(f"--approximate: {args.index} is a file, which is always searched exactly")
    if args.roots:
        model, roots = Exported(args.student), adding.checked(args.roots)  # before an index is made
    with open_index(args.index, write=True) as index:
        if args.codes:
            from search import encoding  # which the other commands need not wait for

            loaded, total = encoding.load(index, args.codes), len(index)
        else:
            exclude = (*EXCLUDED, *args.exclude)
            report = adding.add(index, model, roots, args.prune, args.threads, args.yes, exclude)
            total = len(index)
        if args.approximate:
            index.make_approximate()
    if args.codes:
        print(f"{args.index}: {loaded.added:,} added, {loaded.unchanged:,} unchanged; {many(total, 'picture')}")
        if loaded.broken:
            print(f"{many(loaded.broken, 'picture')} could not be read for encoding; see {args.codes}/broken-*")
        return
    for what, lines in (("decoded", report.broken), ("read", report.unreadable)):
        if lines:
            print(printable(f"{many(len(lines), 'file')} could not be {what}: {some(lines, NAMED)}"))
    if report.others:
        print(printable(f"passed over: {counted(report.others)}"))
    counts = {
        "added": report.added,
        "unchanged": report.unchanged + report.touched,
        "could not be decoded, as before": report.still_broken,
        "gone (--prune forgets them; if they were moved: search move OLD NEW)": report.gone,
        "gone and forgotten": report.forgotten,
    }
    shown = [f"{count:,} {what}" for what, count in counts.items() if count or what == "added"]
    print(f"{args.index}: {', '.join(shown)}; {many(total, 'picture')}")


def query(args: argparse.Namespace) -> None:
    """Find the nearest of every picture."""
    where = Filters(args.within and absolute(args.within), args.label, args.after, args.before)
    with open_index(args.index, nprobe=args.approximate) as index:
        model = asking.model_of(index, args.student)
        say_recall(index, args.approximate)
        if not index.count(where):
            why = "" if where == Filters() else " that --within, --label, --after and --before leave"
            raise UserError(f"{args.index}: holds no picture{why}")
        for path in map(os.fspath, args.pictures):
            if path.startswith(("http:/", "https:/", "s3:/")):
                raise UserError(f"{path}: queries are files of this machine; download it first")
        asked, looks = zip(*(asking.hashed(model, path, os.fspath(path)) for path in args.pictures), strict=True)
        answers = asking.answers(index, asked, args.k, args.radius, where, args.unique, looks)
        if args.montage:
            pictures = (Image.fromarray(pixels_of(path, upright=True)) for path in args.pictures)
            montage.draw(index, list(zip(pictures, answers, strict=True)), args.montage)
    if args.json:
        print(json.dumps(answers))
        return
    for answer in answers:
        print(
            f"{printable(answer['query'])}: {len(answer['results'])} of {many(answer['searched'], 'picture')}, "
            f"hashed in {answer['hash_ms']:.1f} ms, searched in {answer['search_ms']:.1f} ms"
        )
        for hit in answer["results"]:
            same = "  (likely the same picture)" if hit["id"] in answer["likely_same"] else ""
            print(printable(f"{hit['rank']:5} {hit['distance']:4} bits  {hit['path']}{same}"))


def say_recall(index: Index, lists: int | None) -> None:
    if lists:
        recall, k = index.recall()
        print(f"approximate, {lists} lists: {recall:.4f} of the exact {k} nearest are found", file=sys.stderr)


def serve(args: argparse.Namespace) -> None:
    """Serve a page and a JSON API to search by, until Ctrl-C."""
    from search import server  # which the other commands need not wait for

    with open_index(args.index, nprobe=args.approximate) as index:
        say_recall(index, args.approximate)
        server.serve(index, asking.model_of(index, args.student), args.host, args.port, args.allow_host)


def site(args: argparse.Namespace) -> None:
    """Write a folder for any static host: the page, with the browser that hashes and searches."""
    from search import site as sites

    sites.check_out(args.out)  # before npm is asked
    with open_index(args.index) as index:
        student = asking.model_of(index, args.student)
        facts = sites.write_site(index, student, args.out, args.ort or sites.runtime(args.cache_dir))
    size = sum(file.stat().st_size for file in args.out.rglob("*") if file.is_file())
    print(
        f"{args.out}: {many(facts['pictures'], 'picture')}, {size / 2**20:.1f} MiB; names, folders and thumbnails are "
        f"open to whoever sees it. To try it: python -m http.server --bind 127.0.0.1 --directory {args.out} 8001"
    )


def duplicates(args: argparse.Namespace) -> None:
    """List pictures that are there more than once, and which to keep; nothing is deleted."""
    with open_index(args.index) as index:
        groups = copies.duplicates(index)
    copies.write_list(groups, args.out)
    for kind in (copies.SAME, copies.NEAR):
        spare = [picture.size for group in groups for picture in group.pictures[1:] if group.kind(picture) == kind]
        print(f"{kind} as one to keep: {many(len(spare), 'picture')}, {sum(spare) / 2**20:,.1f} MiB")
    print(f"{args.out}: {many(len(groups), 'group')}; nothing was deleted. Look at near copies before you delete any")


def info(args: argparse.Namespace) -> None:
    """Say what is in the index."""
    with open_index(args.index) as index:
        facts = index.info()
        broken = index.broken()
    if args.json:
        print(json.dumps({**facts, "broken_files": [{"path": b.path, "reason": b.reason} for b in broken]}))
        return
    model = facts["model"]
    size = f"Milvus {facts['milvus']}" if facts["bytes"] is None else f"{facts['bytes'] / 2**20:.1f} MiB"
    print(f"{args.index}: {many(facts['pictures'], 'picture')} in {many(facts['folders'], 'folder')}, {size}")
    print(f"model: {called(model)}, from {facts['student']}" if model else "model: none yet")
    if facts.get("passed_over"):
        print(printable(f"passed over by the last add: {counted(Counter(facts['passed_over']))}"))
    if facts.get("excluded"):
        print(printable(f"folders passed over: {', '.join(facts['excluded'])}"))
    if broken:
        print(f"{many(len(broken), 'file')} could not be decoded:")
        for file in broken:
            print(printable(f"  {file.path}: {file.reason}"))


def check(args: argparse.Namespace) -> None:
    """Compare the index with itself and with the files; exit status 1 where something is wrong."""
    with open_index(args.index) as index, index.at_one_moment():
        faults = index.faults() or adding.file_faults(index, args.files)
        total = len(index)
    if faults:
        for fault in faults:
            print(printable(fault))
        raise UserError(f"{args.index}: {len(faults)} kinds of faults, see above")
    print(f"{args.index}: no fault found; {many(total, 'picture')}")


def export_codes(args: argparse.Namespace) -> None:
    """Write ids, paths and codes of all pictures, in the order added."""
    with open_index(args.index) as index, index.at_one_moment(), written_aside(args.out) as file:
        ids, codes = index.codes()
        (write_npz if args.out.suffix == ".npz" else write_parquet)(file, index, ids, codes)
        print(f"{args.out}: {len(ids):,} codes of {index.bits} bits")


def path_parts(index: Index, ids: np.ndarray) -> Iterator[list[str]]:
    for start in tqdm(range(0, len(ids), PART), "exporting", unit="part", leave=False):
        yield [record.path for record in index.records(ids[start : start + PART].tolist())]


def write_npz(file: IO[bytes], index: Index, ids: np.ndarray, codes: np.ndarray) -> None:
    paths = [np.array([], dtype=str), *(np.array(part) for part in path_parts(index, ids))]
    np.savez_compressed(file, ids=ids, paths=np.concatenate(paths), codes=codes, bits=index.bits)


def write_parquet(file: IO[bytes], index: Index, ids: np.ndarray, codes: np.ndarray) -> None:
    """Paths are text here: each byte that is not UTF-8 is written as \\xNN."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = pa.binary(codes.shape[1])
    schema = pa.schema([("id", pa.int64()), ("path", pa.string()), ("code", kind)])
    with pq.ParquetWriter(file, schema) as writer:
        for number, paths in enumerate(path_parts(index, ids)):
            rows = slice(number * PART, number * PART + len(paths))
            text = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
            packed = pa.Array.from_buffers(kind, len(paths), [None, pa.py_buffer(codes[rows].tobytes())])
            writer.write_batch(pa.record_batch([pa.array(ids[rows]), pa.array(text, pa.string()), packed], schema))


def remove(args: argparse.Namespace) -> None:
    """Forget pictures; their files stay."""
    open_index(args.index).close()  # makes none
    with open_index(args.index, write=True) as index:
        broken = len(index.broken())
        removed = index.remove([absolute(path) for path in args.paths])
        broken, total = broken - len(index.broken()), len(index)
    if not removed and not broken:
        raise UserError(f"{args.index}: holds nothing at or below {some(args.paths)}")
    also = f" and {many(broken, 'file')} that could not be decoded" if broken else ""
    print(f"{args.index}: {many(removed, 'picture')}{also} forgotten; {many(total, 'picture')}")


def move(args: argparse.Namespace) -> None:
    """Say that a folder of pictures lies elsewhere now; nothing is hashed again."""
    old, new = absolute(args.old), absolute(args.new)
    if not os.path.isdir(new):
        raise UserError(f"{new}: no such folder; move the pictures first")
    open_index(args.index).close()  # makes none
    with open_index(args.index, write=True) as index:
        print(f"{args.index}: {many(index.move(old, new), 'picture')} of {printable(old)} now in {printable(new)}")


def copy(args: argparse.Namespace) -> None:
    """Copy an index, from a file to Milvus or back; both are compared afterwards."""
    with open_index(args.source) as source, source.at_one_moment(), open_index(args.to, write=True) as to:
        copied, there = engines.copy(source, to)
        total = many(len(to), "picture")
        print(f"{args.to}: {copied:,} copied, {there:,} there before; {total}, the same as {args.source}")


def main() -> None:
    args = parse()
    args.run(args)


if __name__ == "__main__":
    guarded(main)
