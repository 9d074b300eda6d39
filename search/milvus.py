"""The index of a search in Milvus: the methods and results of ``search.index.Index``, on servers that others run.

A collection holds a picture a row and, below id 0, what else is known, as JSON in ``path``: the model, folders, broken
files. Another is there while somebody writes. Milvus has no transactions: each method first adds, then removes, so that
what is killed between leaves too much, which the next ``add`` of the same pictures takes away. Every row's id is chosen
here and written by upsert: doing it twice changes nothing.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import numpy as np
from pymilvus import CollectionSchema, DataType, FieldSchema, MilvusClient

from data.decode import pixels_of
from search.adding import thumbnail_of
from search.index import SHORT, AnyIndex, Broken, Filters, Record, Row
from search.milvus_server import Server
from search.pictures import read
from utils.errors import UserError

OURS, WRITER = "brcd index, format 2", "brcd writer"  # what collections say of themselves
MOST = 16384  # results a query, by Milvus
WINDOW, ROWS = 500_000, 10_000  # results and rows a call, so that no message is too large
LISTS, EVERY = 1024, 65536  # IVF's inverted lists; those that a search looks at, at most, by Milvus
BUILD = 24 * 3600  # seconds in which lists must be built, and all be loaded
RECALL_QUERIES, RECALL_K = 100, 100
LISTED = 10**6  # pictures that are sorted by date, at most
SEEN = "Session"  # consistency that waits for what this process added alone: after a call that waited for the rest
TEXTS = {"path": 65535, "label": 1024, "digest": 64}  # bytes, at most
KEYS = ("path_key", "folder_key", "digest_key")  # have a sorted index
# File names may be of any bytes, Milvus' text is UTF-8: each other byte becomes a character of the last private plane.
ODD = {0xDC00 + byte: 0x10FF00 + byte for byte in range(128, 256)}
BACK = {there: here for here, there in ODD.items()}
READ = {"path": lambda text: text.translate(BACK), "label": lambda text: text.translate(BACK) or None}
READ["code"] = lambda code: np.frombuffer(code[0], np.uint8)


class MilvusIndex(AnyIndex):
    """An index on a Milvus server. Methods that say nothing here are as ``search.index.Index`` says.

    An id is the time, in microseconds since 1970, at which a picture was added, made unique.

    Args:
        path: its address, see ``search.milvus_server``.
        nprobe: search approximately, in so many of IVF's lists; None: exactly.

    Raises:
        UserError: no such index, another process is writing; any method, of what the server refuses.
    """

    most = MOST - 1
    keeps_thumbnails = False
    identity, generation, newest = "", 0, None  # not known
    transaction = AnyIndex.at_one_moment  # Milvus has none

    def __init__(self, path: str, write: bool = False, nprobe: int | None = None):
        self._server = Server(path)
        self.path, self.name, self.nprobe, self._ask = path, self._server.name, nprobe, self._server.ask
        self._level, self._writer, self._mine = SEEN if write else self._server.level, f"{self.name}_writer", ""
        try:
            if write:
                self._hold()
            self._there = self._description(self.name, OURS) is not None
            if not self._there and not write:
                raise UserError(f"{path}: no such index; make one: python -m search add --index {path} ...")
            if self._there and write:
                self._load()  # one that was killed while it made lists has taken it out
            self._count("", "Strong")  # from here on all that was written is seen
            ahead = self._query(f"id > {int(time.time() * 1e6)}", ["id"]) if write else []  # by another's clock
            self._last = max((row["id"] for row in ahead), default=0)
            if nprobe and not self._lists():
                raise UserError(f"{path}: has no lists for --approximate yet; `search add --approximate` makes them")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._server.patience = 0  # one that is gone is not waited for
        with contextlib.suppress(UserError):
            if self._mine and self._description(self._writer, self._mine):
                self._ask("drop_collection", self._writer)
        self._server.client.close()

    def _hold(self) -> None:
        """Make the collection that says who is writing: Milvus has no locks, but of several that do one succeeds."""
        self._mine = f"{WRITER} {os.uname().nodename} {os.getpid()} {started(os.getpid())} {time.time_ns()}"
        if holder := self._description(self._writer, WRITER):
            host, process, since = holder.split()[2:5]
            if host != os.uname().nodename or started(process) == since:
                raise UserError(
                    f"{self.path}: another process is adding to it or removing (process {process} on {host}); wait for "
                    f"its end; of a machine that is no more, drop the collection {self._writer}"
                )
            self._ask("drop_collection", self._writer)  # of a process that was killed
        self._make(self._writer, 1, self._mine)

    def _check_lock(self) -> None:
        if self._description(self._writer, WRITER) != self._mine:
            raise UserError(f"{self.path}: another process has taken the writing over; run the same command again")

    def _description(self, name: str, ours: str) -> str | None:
        """What a collection says of itself; None: it is not there. UserError: it is not ours."""
        text = self._ask("describe_collection", name)["description"] if self._ask("has_collection", name) else None
        if not (text is None or text.startswith(ours)):
            raise UserError(f"{self.path}: {name} is a collection of another project or version; choose another name")
        return text

    def _make(self, name: str, width: int, description: str) -> None:
        fields = [FieldSchema("id", DataType.INT64, is_primary=True), FieldSchema("taken", DataType.DOUBLE)]
        fields += [FieldSchema(field, DataType.INT64) for field in (*KEYS, "size", "mtime_ns")]
        fields += [FieldSchema(field, DataType.VARCHAR, max_length=length) for field, length in TEXTS.items()]
        schema = CollectionSchema([*fields, FieldSchema("code", DataType.BINARY_VECTOR, dim=8 * width)], description)
        self._ask("create_collection", name, schema=schema, num_shards=1, consistency_level="Strong")

    def _load(self, kind: str = "BIN_FLAT", **lists: int) -> None:
        """Index the collection, where it is not, and have it in the servers' memory."""
        if "code" not in self._ask("list_indexes", self.name):  # which is made last, and may be IVF's by now
            indexes = MilvusClient.prepare_index_params()
            for key in KEYS:
                indexes.add_index(key, "STL_SORT", key)
            indexes.add_index("code", kind, "code", metric_type="HAMMING", params=lists)
            self._ask("create_index", self.name, indexes, timeout=BUILD, sync=bool(lists))  # sync: 0.5 s a key
        self._ask("load_collection", self.name, timeout=BUILD)

    def _query(self, condition: str, fields: list[str], level: str = SEEN, **more: object) -> list[dict]:
        """Rows, all at once."""
        how: dict = {"filter": condition, "output_fields": fields, "consistency_level": level, **more}
        rows = self._ask("query", self.name, **how) if self._there else []
        return [{key: READ[key](value) if key in READ else value for key, value in row.items()} for row in rows]

    def _all(self, condition: str, fields: list[str]) -> Iterator[dict]:
        """Rows, of any number."""
        rows = self._query(condition, ["id", *fields], self._level, limit=ROWS)
        if len(rows) < ROWS:
            yield from rows
            return
        # As pymilvus' iterator, but each call is tried again: by id, and a batch of fewer need not be the last.
        last, how = 1 - 2**63, {"limit": ROWS, "iterator": "True", "reduce_stop_for_best": True}
        while rows := self._query(f"{condition} and id > {last}", ["id", *fields], "Strong", **how):
            yield from rows
            last = rows[-1]["id"]

    def _rows(self, ids: Iterable[int], fields: list[str]) -> dict[int, dict]:
        """Rows by id, of those that are there."""
        rows, ids = dict[int, dict](), list(map(int, ids))
        for level in dict.fromkeys((SEEN, self._level)):
            for part in parts([i for i in ids if i not in rows]):
                rows |= {row["id"]: row for row in self._query("", ["id", *fields], level, ids=part)}
        return rows

    def _at(self, paths: Iterable[str]) -> list[int]:
        """Ids of the pictures at these paths."""
        paths = set(paths)
        found = (self._query(f"path_key in {part}", ["id", "path"]) for part in parts([key_of(path) for path in paths]))
        return [row["id"] for rows in found for row in rows if row["path"] in paths]

    def _count(self, condition: str, level: str = SEEN) -> int:
        return sum(row["count(*)"] for row in self._query(condition, ["count(*)"], level))

    def _put(self, rows: Sequence[dict]) -> None:
        for part in parts(rows):
            self._check_lock()
            self._ask("upsert", self.name, part)

    def _delete(self, ids: Sequence[int]) -> None:
        for part in parts(ids):
            self._check_lock()
            self._ask("delete", self.name, ids=part)
            self._count("", "Strong")  # from here on they are not seen: SEEN waits for what was added only

    def _facts(self, kind: str) -> list:
        return [json.loads(row["path"]) for row in self._all(f"id < 0 and digest_key == {key_of(kind)}", ["path"])]

    def _keep(self, kind: str, facts: dict[str, object], width: int) -> None:
        """Values by name, which JSON can say."""
        rest = (0, 0, kind.encode(), np.zeros(width), b"", 0)
        rows = {~key_of(f"{kind} {name}"): Row(json.dumps(value), *rest) for name, value in facts.items()}
        self._put([{**stored(i, row), "label": ""} for i, row in rows.items()])

    def _kept(self, kind: str, names: Iterable[str]) -> list[int]:
        """Ids of the values that are there."""
        return list(self._rows((~key_of(f"{kind} {name}") for name in names), []))

    def _model(self) -> list:
        rows = self._query(f"id == {~key_of('model ')}", ["path"])
        return json.loads(rows[0]["path"]) if rows else [None, None]

    @property
    def card(self) -> dict | None:
        return self._model()[0]

    @property
    def student(self) -> str | None:
        return self._model()[1]

    def set_card(self, card: dict, student: str | None = None) -> None:
        self._refuse_other(card)
        student, width = student or self._known(card), -(-card["bits"] // 8)
        if (self.card or {}).get("model_sha256") != card["model_sha256"]:
            self._ask("drop_collection", self.name)  # where there is one: its codes may be of another width
            self._make(self.name, width, OURS)
            self._load()
            self._there = True
        self._keep("model", {"": [card, student]}, width)

    def folders(self) -> list[str]:
        return sorted(self._facts("folder"), key=os.fsencode)

    def broken(self) -> list[Broken]:
        return sorted((Broken(*fact) for fact in self._facts("broken")), key=lambda file: os.fsencode(file.path))

    def __len__(self) -> int:
        return self._count("id >= 0", self._level)

    def count(self, where: Filters = Filters()) -> int:
        return self._count(filter_of(where))

    def nearest(self, codes: np.ndarray, k: int, where: Filters = Filters()) -> tuple[np.ndarray, np.ndarray]:
        ranked = self._ranked(codes, k, where, self._level)
        return np.array([d for d, _ in ranked], np.int32), np.array([ids for _, ids in ranked], np.int64)

    def _rankings(self, codes: np.ndarray, where: Filters) -> Iterator[Callable]:
        for level in (self._level, *["Strong"] * 9):  # again where one that was found has been removed since
            yield lambda k, level=level: self._ranked(codes, k, where, level)

    def _paths(self, ids: np.ndarray) -> dict[int, tuple[str, str, int, float]]:
        fields = ["path", "digest", "size", "taken"]
        return {i: tuple(row[field] for field in fields) for i, row in self._rows(ids, fields).items()}

    def _ranked(self, codes: np.ndarray, k: int, where: Filters, level: str, exact: bool = False) -> list[tuple]:
        """(distances, ids) of the k nearest of every code, by distance and id."""
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != (width := self.width):
            raise ValueError(f"codes must be uint8 [q, {width}], not {codes.dtype} {list(codes.shape)}")
        if k >= MOST:
            raise UserError(f"{self.path}: Milvus gives at most {MOST - 1:,} results a query, {k:,} are asked for")
        # Milvus gives ties in an order of its own: it is asked for more than k until the last distance is whole.
        condition, nprobe, limit = filter_of(where), None if exact else self.nprobe, min(2 * k, MOST)
        found = list(self._found(codes, limit, condition, nprobe, level))
        while unsure := [i for i, (d, _) in enumerate(found) if len(d) == limit and d[-1] == d[k - 1] and not nprobe]:
            if limit == MOST:
                for i in unsure:
                    found[i] = found[i][0], self._first(codes[i : i + 1], k, condition, *found[i])
                break
            limit = min(4 * limit, MOST)
            for i, more in zip(unsure, self._found(codes[unsure], limit, condition, None, SEEN), strict=True):
                found[i] = more
        return [(distances[:k], ids[:k]) for distances, ids in found]

    def _found(self, codes: np.ndarray, limit: int, condition: str, nprobe: int | None, level: str) -> Iterator[tuple]:
        """(distances, ids) of every code, by distance and id; of ties at the end Milvus chooses some."""
        # Always, since another process may have made lists by now: without lists Milvus looks at all codes anyway.
        params = {"metric_type": "HAMMING", "params": {"nprobe": min(nprobe or EVERY, EVERY)}}
        how: dict = {"anns_field": "code", "limit": limit, "filter": condition, "search_params": params}
        for part in parts([code.tobytes() for code in codes], min(max(1, WINDOW // limit), 1000)):
            for hits in self._ask("search", self.name, data=part, consistency_level=level, **how):
                ids, distances = np.array(hits.ids, np.int64), np.array(hits.distances, np.float32).astype(np.int32)
                order = np.lexsort((ids, distances))
                yield distances[order], ids[order]

    def _first(self, code: np.ndarray, k: int, condition: str, distances: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Ids of the k nearest where more than Milvus gives are as near as the last: of those the least ids."""
        last, near = distances[k - 1], ids[distances < distances[k - 1]]
        # Searched only up to some id, bisected until the ties there are enough, and few enough to be given whole.
        low, high, full, ties = 0, int(ids.max()), False, ids[:0]
        while full or len(near) + len(ties) < k:
            middle = (low + high) // 2
            some, which = next(self._found(code, MOST, f"{condition} and id <= {middle}", None, SEEN))
            full, ties = len(which) == MOST and some[-1] <= last, which[some == last]
            low, high = (low, middle) if full else (middle, high)
        return np.concatenate([near, ties])

    def _lists(self) -> int:
        """How many lists the IVF index has; 0: there is none, every search looks at all codes."""
        return int((self._ask("describe_index", self.name, "code") or {}).get("nlist", 0))

    def make_approximate(self) -> None:
        """Build IVF's lists, so that searches may look at the nearest of them alone; exact ones look at all."""
        if not self._lists():
            self._ask("release_collection", self.name)
            self._ask("drop_index", self.name, "code")
            self._load("BIN_IVF_FLAT", nlist=LISTS)

    def recall(self) -> tuple[float, int]:
        """(share, k): how many of the exact k nearest of some of its own codes the approximate search gives."""
        rows = self._query("id >= 0", ["code"], limit=MOST)
        if not rows:
            raise UserError(f"{self.path}: is empty; there is nothing to search")
        codes = np.stack([row["code"] for row in rows[:: -(-len(rows) // RECALL_QUERIES)]])
        exact, found = (self._ranked(codes, RECALL_K, Filters(), SEEN, exact) for exact in (True, False))
        shares = [(some <= true[-1]).sum() / len(true) for (true, _), (some, _) in zip(exact, found, strict=True)]
        return float(np.mean(shares)), RECALL_K

    def records(self, ids: Sequence[int]) -> list[Record]:
        rows = self._rows(ids, ["path", "size", "mtime_ns", "digest", "label", "taken"])
        return [Record(**rows[int(i)], added=int(i) / 1e6) for i in ids]

    def newest_first(self, where: Filters, start: int, n: int) -> tuple[int, list[Record]]:
        if (count := self.count(where)) > LISTED:
            raise UserError(f"{count:,} pictures are too many to be listed by date on Milvus; search, or filter them")
        rows = sorted((-row["taken"], -row["id"]) for row in self._all(filter_of(where), ["taken"]))
        return count, self.records([-i for _, i in rows[start : start + n]])

    def find(self, content: str) -> Record:
        condition = f"digest like {quoted(content + '%')}"
        rows = (
            self._query(condition, ["id"], self._level, limit=1) if len(content) == SHORT and content.isalnum() else []
        )
        if not rows:
            raise KeyError(content)
        return self.record(rows[0]["id"])

    def thumbnail(self, picture: int) -> bytes:
        """A JPEG, made of the file where it can be read here, else b"". KeyError: not there."""
        path = self.record(picture).path
        with contextlib.suppress(UserError):
            return thumbnail_of(pixels_of(io.BytesIO(read(path)), path, upright=True))
        return b""

    def code_of(self, picture: int) -> np.ndarray:
        return self._rows([picture], ["code"])[picture]["code"]

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        rows = sorted((row["id"], row["code"].tobytes()) for row in self._all("id >= 0", ["code"]))
        codes = np.frombuffer(b"".join(code for _, code in rows), np.uint8)
        return np.array([i for i, _ in rows], np.int64), codes.reshape(len(rows), self.width)

    def known(self, folder: str) -> dict[str, tuple[int, int, int]]:
        """Of two of one name, which a killed ``add`` may have left, a writer removes the older one."""
        found, older = dict[str, tuple[int, int, int]](), list[int]()
        rows = self._all(f"folder_key == {key_of(folder)}", ["path", "size", "mtime_ns"])
        for row in sorted(rows, key=lambda row: row["id"]):
            parent, name = os.path.split(row["path"])
            if parent == folder:
                older += found.get(name, ())[:1]
                found[name] = row["id"], row["size"], row["mtime_ns"]
        self._delete(older if self._mine else [])
        return found

    def same(self, digest: bytes) -> tuple[np.ndarray, bytes] | None:
        condition = f"digest_key == {key_of(digest)} and digest == {quoted(digest.hex())}"
        rows = self._query(condition, ["code"], "Eventually", limit=1)  # one that is missed is hashed again
        return (rows[0]["code"], b"") if rows else None

    def info(self) -> dict:
        facts = {"index": self.path, "format": 2, "bits": self.bits, "model": self.card, "student": self.student}
        counts = {"pictures": len(self), "folders": len(self.folders()), "broken": len(self.broken())}
        return {**facts, **counts, "bytes": None, "milvus": self._server.version, "approximate": bool(self._lists())}

    def faults(self) -> list[str]:
        n, folders = len(self), set(self.folders())
        paths = [row["path"] for row in self._all("id >= 0", ["path"])]
        faults = {
            f"are counted, {len(paths):,} are there": n if n != len(paths) else 0,
            "have the path of another; search add of their folders removes the older ones": len(paths)
            - len(set(paths)),
            "lie in a folder that is not known": sum(os.path.dirname(path) not in folders for path in paths),
        }
        return [f"{count:,} pictures {what}" for what, count in faults.items() if count]

    def add(self, rows: Sequence[Row]) -> list[int]:
        paths, width = {row.path for row in rows}, self.width
        if any(len(row.code) != width for row in rows) or len(paths) < len(rows):
            raise ValueError(f"codes of another width than {width} bytes, or a path given twice")
        before, first = self._at(paths) + self._kept("broken", paths), max(self._last + 1, int(time.time() * 1e6))
        self._last = first + len(rows) - 1
        self._keep("folder", {folder: folder for folder in map(os.path.dirname, paths)}, width)
        self._put([stored(i, row) for i, row in enumerate(rows, first)])
        self._delete(before)
        return list(range(first, self._last + 1))

    def touch(self, stats: Iterable[tuple[int, int, int]]) -> None:
        new = {i: (size, mtime_ns) for i, size, mtime_ns in stats}
        rows = self._rows(new, ["path", "digest", "taken", "code"])
        more = {i: (bytes.fromhex(row["digest"]), row["code"], b"", row["taken"]) for i, row in rows.items()}
        self._put([stored(i, Row(rows[i]["path"], *new[i], *more[i])) for i in rows])

    def note_broken(self, files: Collection[Broken]) -> None:
        self._keep("broken", {f.path: [f.path, f.size, f.mtime_ns, f.reason, f.reader] for f in files}, self.width)
        self._forget(self._at(f.path for f in files))

    def remove(self, which: Iterable[int | str]) -> int:
        which = list(which)
        paths = [one for one in which if isinstance(one, str)]
        ids = {*self._rows((one for one in which if not isinstance(one, str)), []), *self._at(paths)}
        ids |= {row["id"] for path in paths for row in self._all(filter_of(Filters(path)), [])}
        inside = tuple(path.rstrip("/") + "/" for path in paths)
        self._delete(self._kept("broken", (b.path for b in self.broken() if f"{b.path}/".startswith(inside))))
        self._forget(list(ids))
        return len(ids)

    def _forget(self, ids: Sequence[int]) -> None:
        """Remove pictures, and the folders that hold none any more."""
        folders = {os.path.dirname(row["path"]) for row in self._rows(ids, ["path"]).values()}
        self._delete(ids)
        empty = [folder for folder in folders if not self._count(f"folder_key == {key_of(folder)}")]
        self._delete(self._kept("folder", empty))


def stored(i: int, row: Row) -> dict:
    path, folder = row.path, os.path.dirname(row.path)
    keys = {"path_key": key_of(path), "folder_key": key_of(folder), "digest_key": key_of(row.digest)}
    texts = {"path": path.translate(ODD), "label": os.path.basename(folder).translate(ODD), "digest": row.digest.hex()}
    numbers = {"size": row.size, "mtime_ns": row.mtime_ns, "taken": row.taken}
    return {"id": i, **keys, **texts, **numbers, "code": np.asarray(row.code, np.uint8).tobytes()}


def key_of(content: str | bytes) -> int:
    """63 bits by which a path, a folder or a digest is found in a sorted index; what is found is compared whole."""
    return int.from_bytes(hashlib.sha256(os.fsencode(content)).digest()[:8], "big") >> 1


def quoted(text: str) -> str:
    """As a value in a filter."""
    return json.dumps(text.translate(ODD), ensure_ascii=False)


def filter_of(where: Filters) -> str:
    folder = "" if where.folder is None else where.folder.rstrip("/")
    conditions = [
        "id >= 0",
        where.folder is not None and f"path > {quoted(folder + '/')} and path < {quoted(folder + '0')}",
        where.label is not None and f"label == {quoted(where.label)}",
        where.after is not None and f"taken >= {float(where.after)!r}",
        where.before is not None and f"taken < {float(where.before)!r}",
    ]
    return " and ".join(condition for condition in conditions if condition)


def parts(many: Sequence, size: int = 0) -> Iterator[Sequence]:
    """Slices of as many as a call takes."""
    return (many[start : start + (size or ROWS)] for start in range(0, len(many), size or ROWS))


def started(process: int | str) -> str:
    """When a process on this machine was started, as the kernel counts; "-": it is not there."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[19]
    return "-"
