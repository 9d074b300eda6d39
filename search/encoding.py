"""Codes of very many pictures in Parquet: a plan of parts, written once, and parts that appear whole.

    CODES/card.json               the card of the student that hashes
    CODES/plan.parquet            the parts, one a row
    CODES/part-000012.parquet     path, size, mtime_ns and taken (0: unknown), digest (SHA-256 of the file), code,
                                  and thumbnail (JPEG) if asked for
    CODES/broken-000012.parquet   path, reason; only where a part has some

A part that is there is never made again, so that a job which was killed, or whose workers died, goes on where it was.
"""

import contextlib
import hashlib
import io
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from data.decode import PIXELS, pixels_of
from models.exported import KEYS, Exported
from search.adding import in_order, taken_at, thumbnail_of
from search.index import Index, Row, wall
from search.pictures import Part, Picture, is_url, pictures, place, read, read_in_arrow
from utils.errors import UserError, first_line, told
from utils.files import written_aside

READERS = 2  # threads that read and decode ahead of the network
AHEAD = 6  # pictures that wait, decoded
BATCH = 10_000  # pictures, at least, that are added to an index at a time
MET = 1024  # bits a number
PLAN = pa.schema(
    [("kind", pa.string()), ("file", pa.string()), ("column", pa.string()), ("first", pa.int64())]
    + [("last", pa.int64()), ("paths", pa.list_(pa.string()))]
)
BROKEN = pa.schema([("path", pa.string()), ("reason", pa.string())])
FACTS = b"brcd"  # key of what a file's metadata says of its making


def columns_of(width: int, model: str, thumbnails: bool) -> pa.Schema:
    """Columns of a part: codes of ``width`` bytes by the model of that SHA-256."""
    columns = [("path", pa.string()), ("size", pa.int64()), ("mtime_ns", pa.int64()), ("taken", pa.float64())]
    columns += [("digest", pa.binary(32)), ("code", pa.binary(width))]
    columns += [("thumbnail", pa.binary())] * thumbnails
    return pa.schema(columns, metadata={FACTS: json.dumps({"model_sha256": model})})


class Output:
    """A folder of codes, on this machine or by URL."""

    def __init__(self, folder: str):
        self.files, self.path = place(folder)
        self.folder = self.path if "file" in self.files.protocol else folder  # file:// is a path too

    def names(self) -> set[str]:
        """Files that are there.

        Raises:
            UserError: the folder can't be listed.
        """
        self.files.invalidate_cache()
        try:
            return {os.path.basename(p) for p in self.files.ls(self.path, detail=False)}
        except FileNotFoundError:
            return set()
        except Exception as error:  # each protocol has errors of its own
            raise UserError(f"{self.folder}: can't be listed ({first_line(error)})") from None

    def write(self, name: str, content: bytes) -> None:
        """Raises UserError or OSError (a full disk) that names the file."""
        if is_url(self.folder):  # an object appears whole
            try:
                self.files.pipe_file(f"{self.path}/{name}", content)
            except Exception as error:
                raise UserError(f"{self.folder}/{name}: can't be written ({first_line(error)})") from None
            return
        with written_aside(Path(self.path) / name) as file:
            file.write(content)

    def write_table(self, name: str, table: pa.Table) -> None:
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd")
        self.write(name, content.getvalue())

    def read_table(self, name: str) -> pa.Table:
        """Raises UserError if it is missing or damaged."""
        try:
            return pq.read_table(read_in_arrow(f"{self.folder}/{name}"))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"{self.folder}/{name}: damaged ({first_line(error)}); delete it, encode again") from None

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.files.rm_file(f"{self.path}/{name}")


def facts_of(schema: pa.Schema) -> dict:
    """What a file's metadata says of its making; empty if it says nothing."""
    with contextlib.suppress(ValueError):
        facts = json.loads((schema.metadata or {}).get(FACTS, b"{}"))
        return facts if isinstance(facts, dict) else {}
    return {}


def write_plan(out: Output, parts: Iterable[Part], facts: dict) -> None:
    rows = [asdict(part) for part in parts]
    try:
        table = pa.Table.from_pylist(rows, PLAN.with_metadata({FACTS: json.dumps(facts)}))
    except UnicodeEncodeError as error:
        raise UserError(f"a file's name is not UTF-8 ({error.object!a}); rename it") from None
    out.write_table("plan.parquet", table)


def read_plan(out: Output) -> tuple[list[Part], dict]:
    """The parts and the facts that were written with them."""
    table = out.read_table("plan.parquet")
    if not table.schema.equals(PLAN):
        raise UserError(f"{out.folder}/plan.parquet: damaged, or of another version; choose another --out")
    return [Part(**{**row, "paths": tuple(row["paths"])}) for row in table.to_pylist()], facts_of(table.schema)


def part_name(number: int) -> str:
    return f"part-{number:06d}.parquet"


def broken_name(number: int) -> str:
    return f"broken-{number:06d}.parquet"


class Encoder:
    """One exported student, on a core or a GPU, which turns parts into files of codes."""

    def __init__(self, student: str, folder: str, thumbnails: bool = False, gpu: bool = False):
        self.out, self.thumbnails, self._open = Output(folder), thumbnails, partial(Exported, Path(student), gpu=gpu)

    @cached_property
    def student(self) -> Exported:
        return self._open()

    def __call__(self, row: dict) -> dict:
        """As ``make``, and what went wrong, empty if nothing: Ray keeps of an exception no more than its text."""
        try:
            return {**self.make(row), "error": ""}
        except (UserError, OSError) as error:
            return {"coded": 0, "broken": 0, "error": told(error) if isinstance(error, OSError) else str(error)}

    def make(self, row: dict) -> dict[str, int]:
        """Make the part that a row describes, by its number and the fields of ``Part``; how many pictures it has.

        Its codes are removed first and written last: they say that it is done. Made again it has the same bytes.
        """
        number, rows, broken = row.pop("number"), [], []
        schema = columns_of(self.student.width, self.student.hash, self.thumbnails)
        with ThreadPoolExecutor(READERS) as pool:
            for found, pixels in in_order(pool, decoded, pictures(Part(**row)), AHEAD):
                if pixels is None:
                    broken.append(found)
                    continue
                found["code"] = self.student.code(pixels).tobytes()
                if self.thumbnails:
                    found["thumbnail"] = thumbnail_of(pixels)
                rows.append(found)
        self.out.remove(part_name(number))
        if broken:
            self.out.write_table(broken_name(number), pa.Table.from_pylist(broken, BROKEN))
        else:
            self.out.remove(broken_name(number))
        self.out.write_table(part_name(number), pa.Table.from_pylist(rows, schema))
        return {"coded": len(rows), "broken": len(broken)}


def decoded(picture: Picture) -> tuple[dict, np.ndarray | None]:
    """A picture's row less its code, and its pixels; of one that can't be read its path and the reason, and None."""
    name, content = picture
    if (text := name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")) != name:
        return {"path": text, "reason": "its name is not UTF-8; rename it"}, None
    try:
        if isinstance(content, UserError):
            raise content
        mtime, mtime_ns = 0.0, 0
        if content is None:
            with contextlib.suppress(OSError):  # of a URL; what is missing is told by ``read``
                mtime, mtime_ns = (state := os.stat(name)).st_mtime, state.st_mtime_ns
            content = read(name)
        pixels = pixels_of(io.BytesIO(content), name, upright=True)
    except UserError as error:
        return {"path": name, "reason": str(error).removeprefix(f"{name}: ")}, None
    taken, digest = taken_at(content) or wall(mtime), hashlib.sha256(content).digest()
    return {"path": name, "size": len(content), "mtime_ns": mtime_ns, "taken": taken, "digest": digest}, pixels


@dataclass
class Loaded:
    """What came of loading codes: numbers of pictures."""

    added: int = 0
    unchanged: int = 0
    broken: int = 0


def card_of(codes: Output) -> dict:
    """Raises UserError if it is missing or damaged."""
    with contextlib.suppress(ValueError):  # also what is not UTF-8
        card = json.loads(read(f"{codes.folder}/card.json"))
        if isinstance(card, dict) and all(isinstance(card.get(key), kind) for key, kind in KEYS.items()):
            return card
    raise UserError(f"{codes.folder}/card.json: damaged; run python -m search.encode again, it writes it again")


def broken_in(out: Output, n_parts: int) -> int:
    """How many pictures of a job's parts could not be read."""
    names = out.names()
    there = (broken_name(n) for n in range(n_parts) if broken_name(n) in names)
    return sum(out.read_table(name).num_rows for name in there)


def load(index: Index, folder: str) -> Loaded:
    """Add the codes of a finished job to an index, in the order of their parts.

    What is there with the same bytes stays as it is, so that a load which was killed goes on when it is run again.

    Raises:
        UserError: no finished job there, or one of another model than the index's.
    """
    codes = Output(folder)
    names = codes.names()
    if not {"card.json", "plan.parquet"} <= names:
        raise UserError(f"{folder}: no codes there; python -m search.encode --out {folder} makes some")
    parts, facts = read_plan(codes)
    if lacking := sum(part_name(n) not in names for n in range(len(parts))):
        raise UserError(f"{folder}: {lacking} of {len(parts)} parts are missing; run search.encode again, it goes on")
    if facts.get("pixels") != PIXELS:
        print(f"note: {folder} is of an older reader, which left colour profiles alone; encode such pictures anew")
    card = card_of(codes)
    index.set_card(card)
    report = Loaded(broken=broken_in(codes, len(parts)))

    def batches() -> Iterator[list[Row]]:
        rows = []
        for number in tqdm(range(len(parts)), "loading", unit="part"):
            table = codes.read_table(part_name(number))
            models = [facts_of(table.schema).get("model_sha256"), facts.get("model_sha256"), card["model_sha256"]]
            if len(set(models)) > 1:
                raise UserError(
                    f"{folder}/{part_name(number)}: its codes, the plan and card.json are of several models"
                )
            for row in table.to_pylist():
                rows.append(Row(**{"thumbnail": b"", **row, "code": np.frombuffer(row["code"], np.uint8)}))
            if len(rows) >= BATCH:
                yield rows
                rows = []
        yield rows

    for added, there in add_new(index, batches()):
        report.added += added
        report.unchanged += there
    return report


def add_new(index: Index, batches: Iterable[list[Row]]) -> Iterator[tuple[int, int]]:
    """Add those rows that are not in an index with the same bytes; a batch is a transaction.

    Yields:
        For each batch how many were added, and how many were there.

    Raises:
        UserError: two rows of one path and different bytes.
    """
    known: dict[str, dict[str, tuple[int, int, int]]] = {}  # of the folders of the batch before
    met: dict[int, int] = defaultdict(int)  # bits by id, ``MET`` a number: pictures that rows of these batches are of
    for rows in batches:
        folders = {os.path.dirname(row.path) for row in rows}
        known = {folder: known[folder] if folder in known else index.known(folder) for folder in folders}
        ids = {row.path: known[os.path.dirname(row.path)].get(os.path.basename(row.path), (0,))[0] for row in rows}
        digests = {r.id: bytes.fromhex(r.digest) for r in index.records([i for i in ids.values() if i])}
        new: dict[str, Row] = {}
        for row in rows:
            there, same = ids[row.path], new.get(row.path)
            if row.digest == (same.digest if same else digests.get(there)):
                if not same:
                    met[there // MET] |= 1 << there % MET
                continue
            if same or (there and met[there // MET] >> there % MET & 1):
                raise UserError(f"{row.path}: two pictures of that name; give each one of its own")
            new[row.path] = row
        added = index.add(list(new.values())) if new else []
        for i, row in zip(added, new.values(), strict=True):
            known[os.path.dirname(row.path)][os.path.basename(row.path)] = i, row.size, row.mtime_ns
            met[i // MET] |= 1 << i % MET
        yield len(new), len(rows) - len(new)
