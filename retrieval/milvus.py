"""The index of a search in Milvus: the methods and results of ``retrieval.index.Index``, on servers that others run.

    milvus://HOST:PORT/NAME[?consistency=Bounded]        milvus+tls://... over TLS

NAME holds a picture a row, NAME_facts the card, folders and broken files, and NAME_writer is there while somebody
writes: Milvus has no locks, but of several that make a collection of one name one succeeds. It has no transactions
either: each method first adds, then removes, so that what is killed between leaves too much, which the next ``add``
of the same pictures takes away. Every row's id is chosen here and written by upsert: doing it twice changes nothing.

Milvus gives ties in an order of its own. A search asks for more than k until the last distance is whole, and sorts by
distance and id, so that results equal the embedded index's.

MILVUS_TOKEN (or MILVUS_USER and MILVUS_PASSWORD) are credentials; MILVUS_CA, MILVUS_CERT and MILVUS_KEY files of TLS.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import secrets
import socket
import time
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import grpc
import numpy as np
from pymilvus import DataType, MilvusClient, MilvusException

from data.decode import pixels_of
from data.pictures import read
from retrieval.adding import thumbnail_of
from retrieval.index import AnyIndex, Broken, Filters, Record, Row
from utils.errors import UserError, first_line

OLDEST = (2, 3)  # version with counts, upserts and iterators
CONNECT = 10  # seconds until a server that does not answer is given up
TIMEOUT = 20  # seconds a call; pymilvus tries again so long where the connection is lost
PATIENCE = 60  # seconds in which a call is tried again where the server says that it is not ready
BUILD = 24 * 3600  # seconds in which an index must be built
MOST = 16384  # results a query, by Milvus
WINDOW = 500_000  # results a call, so that no message is too large
ROWS = 10_000  # rows a call
LISTS = 1024  # IVF's inverted lists
EVERY = 65536  # lists a search looks at, at most, by Milvus
RECALL_QUERIES, RECALL_K = 100, 100
LEVELS = ("Strong", "Session", "Bounded", "Eventually")
OURS = "brcd index, format 1"
PATH = 16384  # bytes, at most
NOT_LOADED = {101, 103}
# Errors that pass by themselves: a node that starts, moves or is loading; and those that do not, whatever they quote.
PASSING = {1, 2, 8, 106, 400, 401, 500, 501, 503, 901, 902, 903, 904} | NOT_LOADED
FINAL = {100, 1100}  # no such collection, a call that is wrong
PASSING_TEXT = re.compile(
    r"not (yet )?(ready|healthy|loaded|fully loaded|serving|available|initialized)|unavailable|offline|no available"
    r"|node not (found|match)|channel|shard leader|recovering|starting|timeout|deadline|lag",
    re.IGNORECASE,
)
# File names may be of any bytes, Milvus' text is UTF-8: each other byte becomes a character of the last private plane.
ODD = {0xDC00 + byte: 0x10FF00 + byte for byte in range(128, 256)}
BACK = {there: here for here, there in ODD.items()}
FIELDS = ["id", "path", "size", "mtime_ns", "digest", "taken"]
TEXT, NUMBER = DataType.VARCHAR, DataType.INT64
PICTURE = [
    *[("id", NUMBER, {"is_primary": True}), ("path", TEXT, {"max_length": PATH}), ("path_key", NUMBER, {})],
    *[("folder_key", NUMBER, {}), ("label", TEXT, {"max_length": 1024}), ("digest", TEXT, {"max_length": 64})],
    *[("digest_key", NUMBER, {}), ("size", NUMBER, {}), ("mtime_ns", NUMBER, {}), ("taken", DataType.DOUBLE, {})],
]
KEYS = ("path_key", "folder_key", "digest_key")  # have a sorted index
# Milvus wants a vector in every collection.
FACT = [("name", TEXT, {"is_primary": True, "max_length": 2 * PATH}), ("kind", TEXT, {"max_length": 16})]
FACT += [("value", TEXT, {"max_length": 65535})]

logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it says, its exceptions say too


def key_of(content: str | bytes) -> int:
    """64 bits by which a path, a folder or a digest is found in a sorted index; what is found is compared whole."""
    content = content if isinstance(content, bytes) else content.encode()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big", signed=True)


def to_text(path: str) -> str:
    return path.translate(ODD)


def to_path(text: str) -> str:
    return text.translate(BACK)


def quoted(text: str | int) -> str:
    """As a value in a filter."""
    return json.dumps(text, ensure_ascii=False)


def below(folder: str) -> str:
    """Filter for paths below a folder."""
    folder = to_text(folder).rstrip("/")
    return f"(path > {quoted(folder + '/')} and path < {quoted(folder + '0')})"


def filter_of(where: Filters) -> str:
    conditions = []
    if where.folder is not None:
        conditions.append(below(where.folder))
    if where.label is not None:
        conditions.append(f"label == {quoted(to_text(where.label))}" if where.label else "id < 0")
    if where.after is not None:
        conditions.append(f"taken >= {float(where.after)!r}")
    if where.before is not None:
        conditions.append(f"taken < {float(where.before)!r}")
    return " and ".join(conditions)


def both(*filters: str) -> str:
    return " and ".join(f"({one})" for one in filters if one)


class MilvusIndex(AnyIndex):
    """An index on a Milvus server; methods, results and errors are those of ``retrieval.index.Index``.

    An id is the time, in microseconds since 1970, at which a picture was added, made unique.

    Args:
        name: address, as above.
        write: also change it: it is made where there is none. One process may, at a time.
        nprobe: search approximately, in so many of IVF's lists; None: exactly.

    Raises:
        UserError: no server, one that is too old, no such index, a collection that is not an index of ours, another
            process is writing.
    """

    most = MOST - 1

    def __init__(self, name: str, write: bool = False, nprobe: int | None = None):
        self.path, self.nprobe, self._lock, self._last, self._client = name, nprobe, None, 0, None
        uri, self.name, level = parsed(name)
        self._facts, self._writer = f"{self.name}_facts", f"{self.name}_writer"
        host = re.escape(uri.partition("//")[2])
        self._names = re.compile(rf"\b{self.name}(_facts|_writer)?\b|{host}")  # of any words, in errors too
        self._client = self._connected(uri)
        try:
            # A writer is alone: it sees what it added ("Session"; of what it removed only "Strong" is sure). A reader's
            # search sees all that was written before it, and what follows asks servers that have seen that.
            self._level, self._soon, self._whole = (
                ("Session", "Session", "Strong") if write else (level, "Eventually", level)
            )
            self._there = self._ours()
            if write:
                self._hold()
                self._begin()
            elif not self._there:
                raise UserError(f"{name}: no such index; make one: search.py add --index {name} ...")
            else:
                for collection in (self.name, self._facts):
                    self._count("", "Strong", collection)  # all that was written is seen from here on
            if nprobe and not self._lists:
                raise UserError(f"{name}: has no lists for --approximate yet; search.py add --approximate makes them")
        except BaseException:
            self.close()
            raise

    # The server

    def _connected(self, uri: str) -> MilvusClient:
        env = os.environ
        token = env.get("MILVUS_TOKEN") or ":".join(filter(None, [env.get("MILVUS_USER"), env.get("MILVUS_PASSWORD")]))
        files = {"MILVUS_CA": "ca_pem_path", "MILVUS_CERT": "client_pem_path", "MILVUS_KEY": "client_key_path"}
        secure = uri.startswith("https")
        tls = {option: env[name] for name, option in files.items() if name in env} if secure else {}
        if "ca_pem_path" in tls and len(tls) < 3:
            tls = {"server_pem_path": tls["ca_pem_path"]}  # its name where the client shows no certificate
        try:
            client = MilvusClient(
                uri, token=token, timeout=CONNECT, dedicated=True, secure=bool(tls) or "https" in uri, **tls
            )
            version = client.get_server_version(timeout=CONNECT)
        except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError, ValueError) as error:
            raise self._refused(error) from None
        numbers = re.findall(r"\d+", version)
        if tuple(map(int, numbers[:2])) < OLDEST:
            client.close()
            raise UserError(f"{self.path}: Milvus {version}; version {'.'.join(map(str, OLDEST))} or newer is needed")
        return client

    def _ask(self, method: str, *args, timeout: float = TIMEOUT, **kwargs):
        """A call of the client, tried again with growing pauses where the server is not ready.

        Raises:
            UserError: what may not be tried again, or has been in vain.
        """
        end, pause = time.monotonic() + PATIENCE, 0.1
        while True:
            try:
                return getattr(self._client, method)(*args, timeout=timeout, **kwargs)
            except (MilvusException, grpc.RpcError) as error:
                if not self._passes(error) or time.monotonic() + pause > end:
                    raise self._refused(error) from None
                time.sleep(pause)
                pause = min(2 * pause, 5)

    def _passes(self, error: Exception) -> bool:
        """Whether the same call may succeed later."""
        code, text = told(error)
        if isinstance(code, grpc.StatusCode):
            return code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        if code in PASSING or code in FINAL:
            return code in PASSING
        return getattr(error, "retriable", False) or bool(PASSING_TEXT.search(self._names.sub("", text)))

    def _refused(self, error: Exception) -> UserError:
        code, text = told(error)
        where, text, words = self.path, first_line(text), self._names.sub("", first_line(text))
        if "auth" in words.lower() or code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return UserError(f"{where}: credentials are needed or wrong: set MILVUS_TOKEN=USER:PASSWORD ({text})")
        if "quota" in words or "no space" in words or "disk" in words:
            return UserError(f"{where}: no space is left there; what was added before is kept ({text})")
        if code in NOT_LOADED:
            return UserError(
                f"{where}: is not loaded ({text}); wait while search.py add --approximate is at work there; if it was "
                "killed, run it again"
            )
        if self._passes(error) or isinstance(error, grpc.FutureTimeoutError) or "connect" in words:
            return UserError(f"{where}: no Milvus server answers there ({text}); start it, or mend the address")
        return UserError(f"{where}: Milvus refuses ({text})")

    def _ours(self) -> bool:
        """Whether the index is there. UserError: a collection of that name is another's."""
        there = set(self._ask("list_collections"))
        for name in {self.name, self._facts} & there:
            if self._ask("describe_collection", name)["description"] != OURS:
                raise self._alien(name)
        if self.name in there and self._facts not in there:
            raise UserError(f"{self.path}: damaged: {self._facts} is not there; drop {self.name} and add again")
        return {self.name, self._facts} <= there

    def _alien(self, name: str) -> UserError:
        return UserError(f"{self.path}: {name} is a collection of another project; choose another name")

    def _hold(self) -> None:
        """The writer's lock: a collection that says whose it is.

        Raises:
            UserError: another process is writing.
        """
        here = {"host": socket.gethostname(), "pid": os.getpid(), "started": started(os.getpid())}
        mine = json.dumps({**here, "token": secrets.token_hex(8)})
        for _ in range(3):
            try:
                self._make(self._writer, FACT[:1], 8, mine, loaded=False)
                self._lock = mine
                return
            except UserError as error:
                holder, refused = self._holder(), error
            if holder and (holder["host"] != here["host"] or started(holder["pid"]) == holder["started"]):
                break
            if holder:  # a process that was killed
                self._ask("drop_collection", self._writer)
        if holder is None:
            raise refused
        who = f"process {holder['pid']} on {holder['host']}"
        raise UserError(
            f"{self.path}: another process is adding to it or removing ({who}); wait for its end; of a machine that is "
            f"no more, drop the collection {self._writer}"
        )

    def _holder(self) -> dict | None:
        if self._writer not in self._ask("list_collections"):
            return None
        try:
            description = self._ask("describe_collection", self._writer)["description"]
        except UserError:  # given back meanwhile
            return None
        try:
            holder = json.loads(description)
            return {key: holder[key] for key in ("host", "pid", "started", "token")}
        except (ValueError, TypeError, KeyError):
            raise self._alien(self._writer) from None

    def _still_mine(self) -> None:
        if (self._holder() or {}).get("token") != json.loads(self._lock)["token"]:
            raise UserError(f"{self.path}: another process has taken the writing over; run the same command again")

    def _make(self, name: str, fields: list, bits: int, description: str, loaded: bool = True) -> None:
        """Make a collection and begin to load it; where it is there already nothing happens."""
        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
        for field, kind, more in fields:
            schema.add_field(field, kind, **more)
        schema.add_field("code", DataType.BINARY_VECTOR, dim=bits)
        indexes = MilvusClient.prepare_index_params()
        for key in KEYS:
            if key in (field for field, *_ in fields):
                indexes.add_index(key, index_name=key, index_type="STL_SORT")
        indexes.add_index("code", index_name="code", index_type="BIN_FLAT", metric_type="HAMMING")
        try:
            if not loaded or name not in self._ask("list_collections"):  # a restarted server refuses the same again
                self._ask("create_collection", name, schema=schema, num_shards=1, consistency_level="Strong")
            if loaded and "code" not in self._ask("list_indexes", name):  # which is made last, and may be IVF's by now
                self._ask("create_index", name, indexes, sync=False)  # else it waits half a second for each
            if loaded:
                self._ask("load_collection", name, _async=True)
        except UserError as error:
            if "binary" in str(error).lower():
                raise UserError(f"{self.path}: that server has no binary vectors (Milvus Lite?); {error}") from None
            raise

    def close(self) -> None:
        """Give the writer's lock back."""
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(MilvusException, grpc.RpcError):
            if self._lock and client.describe_collection(self._writer, timeout=CONNECT)["description"] == self._lock:
                client.drop_collection(self._writer, timeout=CONNECT)
        client.close()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Milvus has none: see above."""
        yield

    def _begin(self) -> None:
        """What a writer knows: folders, broken files, and that no id lies in the future."""
        self._folders, self._broken = set(), {}
        if not self._there:
            return
        for name, fields in ((self._facts, FACT), (self.name, PICTURE)):
            self._make(name, fields, 8, OURS)  # what one that was killed while it made lists has taken away
            self._ask("load_collection", name)
        self._last = next_id = int(time.time() * 1e6)
        step = 1_000_000
        while self._count(f"id >= {next_id}", "Strong"):  # of a machine whose clock is ahead
            next_id, step = next_id + step, 2 * step
            self._last = next_id
        self._count("", "Strong", self._facts)
        self._folders = set(self.folders())
        self._broken = {file.path: file for file in self.broken()}

    def _query(
        self, condition: str, fields: list[str], level: str | None = None, collection: str | None = None, **more
    ) -> list[dict]:
        """Rows of a collection, all at once."""
        if not self._there:
            return []
        how = {"output_fields": fields, "consistency_level": level or self._soon, **more}
        return self._ask("query", collection or self.name, filter=condition, **how)

    # Facts

    def _fact(self, name: str) -> str | None:
        rows = self._query(f"name == {quoted(name)}", ["value"], collection=self._facts)
        return rows[0]["value"] if rows else None

    def _keep_facts(self, kind: str, values: dict[str, str]) -> None:
        rows = [{"name": f"{kind} {n}", "kind": kind, "value": v, "code": b"\0"} for n, v in values.items()]
        for i in range(0, len(rows), ROWS):
            self._ask("upsert", self._facts, rows[i : i + ROWS])

    def _drop_facts(self, kind: str, names: Collection[str]) -> None:
        if names:
            keys = ", ".join(quoted(f"{kind} {to_text(name)}") for name in names)  # pymilvus escapes nothing
            self._ask("delete", self._facts, filter=f"name in [{keys}]")

    def _facts_of(self, kind: str) -> dict[str, str]:
        rows = self._all(self._facts, f"kind == {quoted(kind)}", ["name", "value"])
        return {to_path(row["name"].removeprefix(f"{kind} ")): row["value"] for row in rows}

    @property
    def card(self) -> dict | None:
        """The card of the exported model that hashed the pictures; None where there is none yet."""
        text = self._fact("model card")
        return json.loads(text) if text else None

    @property
    def student(self) -> str | None:
        """The folder that the exported model lay in."""
        return to_path(self._fact("model student") or "") or None

    def set_card(self, card: dict, student: str | None = None) -> None:
        """Say which model hashes the pictures, and where it lies; None leaves that as it is.

        Raises:
            UserError: another one has hashed those that are here.
        """
        self._refuse_other(card)
        self._still_mine()
        student = student or self._known(card)
        if self._there and self.card["model_sha256"] != card["model_sha256"]:
            self._ask("drop_collection", self.name)  # its codes may be of another width
        self._make(self._facts, FACT, 8, OURS)
        self._keep_facts("model", {"card": json.dumps(card), "student": to_text(student or "")})
        self._make(self.name, PICTURE, 8 * -(-card["bits"] // 8), OURS)
        for collection in (self._facts, self.name):
            self._ask("load_collection", collection)  # until it is
        self._there = True

    # Searching

    def _count(self, condition: str, level: str | None = None, collection: str | None = None) -> int:
        rows = self._query(condition, ["count(*)"], level, collection)
        return rows[0]["count(*)"] if rows else 0

    def __len__(self) -> int:
        return self._count("", self._whole)

    def count(self, where: Filters = Filters()) -> int:
        """How many pictures a search with these filters looks at."""
        return self._count(filter_of(where))

    def _all(self, collection: str, condition: str, fields: list[str], level: str | None = None) -> Iterator[dict]:
        """All rows of a collection that a filter lets through."""
        rows = self._query(condition, fields, level or self._whole, collection, limit=ROWS)
        if len(rows) < ROWS:
            yield from rows
            return
        # As pymilvus' iterator, which can't quote keys: in their order, and a batch of fewer need not be the last.
        how = {"limit": ROWS, "iterator": "True", "reduce_stop_for_best": True}
        key, after = "name" if collection == self._facts else "id", ""
        while rows := self._query(both(condition, after), fields, "Strong", collection, **how):
            yield from rows
            after = f"{key} > {quoted(rows[-1][key])}"

    def _found(self, codes: np.ndarray, limit: int, condition: str, nprobe: int | None, level: str) -> Iterator[tuple]:
        """(distances, ids) of every code, by distance and id; of ties at the end Milvus chooses some."""
        # Always, since another process may have made lists by now: without lists Milvus looks at all codes anyway.
        params = {"nprobe": min(nprobe or EVERY, EVERY)}
        step = min(max(1, WINDOW // limit), 1000)
        for i in range(0, len(codes), step):
            lists = self._ask(
                "search",
                self.name,
                data=[code.tobytes() for code in codes[i : i + step]],
                anns_field="code",
                limit=limit,
                filter=condition,
                search_params={"metric_type": "HAMMING", "params": params},
                consistency_level=level,
            )
            for hits in lists:
                ids, distances = np.array(hits.ids, np.int64), np.array(hits.distances, np.float32).astype(np.int32)
                order = np.lexsort((ids, distances))
                yield distances[order], ids[order]

    def _ranked(self, codes: np.ndarray, k: int, condition: str, nprobe: int | None) -> list[tuple]:
        """(distances, ids) of the k nearest of every code, by distance and id; exact where nprobe is None."""
        width = self.width
        if codes.dtype != np.uint8 or codes.ndim != 2 or codes.shape[1] != width:
            raise ValueError(f"codes must be uint8 [q, {width}], not {codes.dtype} {list(codes.shape)}")
        if k >= MOST:
            raise UserError(f"{self.path}: Milvus gives at most {MOST - 1:,} results a query, {k:,} are asked for")
        ranked, todo, limit, level = [None] * len(codes), list(range(len(codes))), min(2 * k, MOST), self._level
        while todo:
            unsure, found = [], self._found(codes[todo], limit, condition, nprobe, level)
            for i, (distances, ids) in zip(todo, found, strict=True):
                whole = len(ids) < limit or distances[-1] > distances[k - 1] or nprobe
                if not whole and limit == MOST:
                    distances, ids = self._first_ties(codes[i : i + 1], distances, ids, k, condition)
                    whole = True
                if whole:
                    ranked[i] = distances[:k], ids[:k]
                else:
                    unsure.append(i)
            todo, limit, level = unsure, min(4 * limit, MOST), self._soon
        return ranked

    def _first_ties(self, code: np.ndarray, distances: np.ndarray, ids: np.ndarray, k: int, condition: str) -> tuple:
        """The k nearest where more than ``MOST`` are as near as the last: of those the ones with the least ids.

        Searches only up to some id, bisected until the ties there are enough, and few enough to be given whole.
        """
        last = distances[k - 1]
        near = distances < last
        lacking, low, high = k - near.sum(), 0, int(ids.max())
        while True:
            middle = (low + high) // 2
            some, which = next(self._found(code, MOST, both(condition, f"id <= {middle}"), None, self._soon))
            ties = which[some == last]
            if len(which) == MOST and some[-1] <= last:
                high = middle
            elif len(ties) < lacking:
                low = middle
            else:
                kept = np.concatenate([ids[near], ties[:lacking]])
                return np.concatenate([distances[near], np.full(lacking, last)]), kept

    def nearest(self, codes: np.ndarray, k: int, where: Filters = Filters()) -> tuple[np.ndarray, np.ndarray]:
        """(distances int32, ids int64) [q, min(k, pictures)] of the nearest, ascending; ties in the order added."""
        ranked = self._ranked(codes, k, filter_of(where), self.nprobe) if self._there else [([], [])] * len(codes)
        return np.array([d for d, _ in ranked], np.int32), np.array([ids for _, ids in ranked], np.int64)

    def _rankings(self, codes: np.ndarray, where: Filters) -> Iterator[Callable]:
        """Again where one that was found has been removed since."""
        if not self._there:
            yield lambda _: [(np.empty(0, np.int32), np.empty(0, np.int64))] * len(codes)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            yield lambda k: self._ranked(codes, k, filter_of(where), self.nprobe)

    def _paths(self, ids: np.ndarray) -> dict[int, tuple[str, str]]:
        """(path, digest) of those ids that are there."""
        rows = self._rows(ids.tolist(), ["path", "digest"])
        return {i: (to_path(row["path"]), row["digest"]) for i, row in rows.items()}

    # What is known of pictures

    def _rows(self, ids: Sequence[int], fields: list[str]) -> dict[int, dict]:
        """Rows by id, of those that are there."""
        rows = {}
        for level in (self._soon, self._level):
            lacking = [i for i in ids if i not in rows]
            for start in range(0, len(lacking), ROWS):
                part = self._query("", ["id", *fields], level, ids=lacking[start : start + ROWS])
                rows |= {row["id"]: row for row in part}
        return rows

    def records(self, ids: Sequence[int]) -> list[Record]:
        """What is known of pictures.

        Raises:
            KeyError: one that is not there.
        """
        ids = list(map(int, ids))
        rows = self._rows(ids, FIELDS)
        return [_record(rows[i]) for i in ids]

    def thumbnail(self, picture: int) -> bytes:
        """A JPEG, made of the file where it can be read here, else b"". KeyError: not there."""
        path = self.record(picture).path
        try:
            return thumbnail_of(pixels_of(io.BytesIO(read(path)), path, upright=True))
        except UserError:
            return b""

    def code_of(self, picture: int) -> np.ndarray:
        """uint8 [w]. KeyError: not there."""
        return _code(self._rows([int(picture)], ["code"])[int(picture)])

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [n], codes uint8 [n, w]) in the order added."""
        ids, codes = [], []
        for row in self._all(self.name, "", ["id", "code"]):
            ids.append(row["id"])
            codes.append(row["code"][0])
        ids = np.array(ids, np.int64)
        codes = np.frombuffer(b"".join(codes), np.uint8).reshape(len(ids), self.width)
        order = np.argsort(ids, kind="stable")
        return ids[order], codes[order]

    def folders(self) -> list[str]:
        """Folders that pictures lie in, sorted."""
        return sorted(self._facts_of("folder"), key=os.fsencode)

    def broken(self) -> list[Broken]:
        """Files that are no readable pictures, sorted by path."""
        found = self._facts_of("broken")
        return [Broken(path, *json.loads(found[path])) for path in sorted(found, key=os.fsencode)]

    def known(self, folder: str) -> dict[str, tuple[int, int, int]]:
        """(id, size, mtime_ns) by name of the pictures that lie right in a folder.

        Of two of one name, which a killed ``add`` may have left, a writer removes the older one.
        """
        found, older = {}, []
        condition = f"folder_key == {key_of(to_text(folder))}"
        fields = ["id", "path", "size", "mtime_ns"]
        rows = self._all(self.name, condition, fields, self._level)
        for row in sorted(rows, key=lambda row: row["id"]):
            parent, name = os.path.split(to_path(row["path"]))
            if parent == folder:
                older += [found[name][0]] if name in found else []
                found[name] = row["id"], row["size"], row["mtime_ns"]
        if self._lock and older:
            self._ask("delete", self.name, ids=older)
        return found

    def same(self, digest: bytes) -> tuple[np.ndarray, bytes] | None:
        """(code, thumbnail) of a picture with these bytes, if there is one."""
        condition = f"digest_key == {key_of(digest)} and digest == {quoted(digest.hex())}"
        rows = self._query(condition, ["code"], "Eventually", limit=1)  # one that is missed is hashed again
        return (_code(rows[0]), b"") if rows else None

    def info(self) -> dict:
        """What is in it, as plain values."""
        return {
            "index": self.path,
            "format": 1,
            "pictures": len(self),
            "folders": len(self.folders()),
            "broken": len(self.broken()),
            "bits": self.bits,
            "model": self.card,
            "student": self.student,
            "bytes": None,
            "milvus": self._ask("get_server_version"),
            "approximate": bool(self._lists),
        }

    def faults(self) -> list[str]:
        """What is wrong with the index in itself, a line each."""
        n, bits, folders = 0, self.bits, set(self.folders())
        width, spare = -(-bits // 8), -bits % 8
        paths, counts = set(), dict.fromkeys(("twice", "code", "key", "folder", "digest"), 0)
        for row in self._all(self.name, "", [*FIELDS, "code", "path_key", "folder_key"]):
            n, text, code = n + 1, row["path"], _code(row)
            folder = os.path.dirname(text)
            counts["twice"] += key_of(text) in paths
            counts["code"] += bool(len(code) != width or (spare and code[-1] & (1 << spare) - 1))
            counts["key"] += (row["path_key"], row["folder_key"]) != (key_of(text), key_of(folder))
            counts["folder"] += to_path(folder) not in folders
            counts["digest"] += len(row["digest"]) != 64
            paths.add(key_of(text))
        what = {
            "twice": "pictures have the path of another; search.py add of their folders removes the older ones",
            "code": f"codes are not of {bits} bits",
            "key": "pictures are not found by their path",
            "folder": "pictures lie in a folder that is not known",
            "digest": "pictures have no content hash",
        }
        faults = [f"{count:,} {what[kind]}" for kind, count in counts.items() if count]
        if (known := len(self)) != n:
            faults.append(f"{known:,} pictures are counted, {n:,} are there")
        return faults

    # Approximate search

    @property
    def _lists(self) -> int:
        """How many lists the IVF index has; 0: there is none, every search looks at all codes."""
        found = self._ask("describe_index", self.name, "code") if self._there else None
        return int((found or {}).get("nlist", 0))

    def make_approximate(self) -> None:
        """Build IVF's lists, so that searches may look at the nearest of them alone; exact ones look at all."""
        if self._lists:
            return
        self._still_mine()
        self._ask("release_collection", self.name)
        self._ask("drop_index", self.name, "code")
        index = MilvusClient.prepare_index_params()
        index.add_index("code", "BIN_IVF_FLAT", "code", metric_type="HAMMING", params={"nlist": LISTS})
        self._ask("create_index", self.name, index, timeout=BUILD)
        self._ask("load_collection", self.name, timeout=BUILD)

    def recall(self) -> tuple[float, int]:
        """(share, k): how many of the exact k nearest of some of its own codes the approximate search gives."""
        rows = self._query("id >= 0", ["code"], limit=MOST)
        if not rows:
            raise UserError(f"{self.path}: is empty; there is nothing to search")
        chosen = np.random.RandomState(0).permutation(len(rows))[:RECALL_QUERIES]
        codes = np.stack([_code(rows[i]) for i in chosen])
        exact, approximate = (self._ranked(codes, RECALL_K, "", nprobe) for nprobe in (None, self.nprobe))
        found = [(some <= all_[-1]).sum() / len(all_) for (all_, _), (some, _) in zip(exact, approximate, strict=True)]
        return float(np.mean(found)), RECALL_K

    # Writing

    def _new_ids(self, n: int) -> range:
        first = max(self._last + 1, int(time.time() * 1e6))
        self._last = first + n - 1
        return range(first, first + n)

    def _at(self, paths: Collection[str]) -> list[int]:
        """Ids of the pictures at these paths."""
        texts, found = {to_text(path) for path in paths}, []
        texts = list(texts)
        for start in range(0, len(texts), ROWS):
            part = set(texts[start : start + ROWS])
            rows = self._query(f"path_key in {sorted(map(key_of, part))}", ["id", "path"], "Session")
            found += [row["id"] for row in rows if row["path"] in part]
        return found

    def add(self, rows: Sequence[Row]) -> list[int]:
        """Add pictures, in this order; returns their ids. One whose path is there already takes its place, by a new id.

        Raises:
            ValueError: a code of another width than the card's, or a path given twice.
        """
        if not rows:
            return []
        paths, width = {row.path for row in rows}, self.width
        if any(len(row.code) != width for row in rows) or len(paths) < len(rows):
            raise ValueError(f"codes of another width than {width} bytes, or a path given twice")
        self._still_mine()
        before, ids = self._at(paths), self._new_ids(len(rows))
        folders = {os.path.dirname(path) for path in paths} - self._folders
        self._keep_facts("folder", {to_text(folder): "" for folder in folders})
        self._folders |= folders
        for start in range(0, len(rows), ROWS):
            part = zip(ids[start : start + ROWS], rows[start : start + ROWS], strict=True)
            self._ask("upsert", self.name, [_stored(i, row) for i, row in part])
        self._delete(before)
        self._forget_broken(paths)
        return list(ids)

    def _delete(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), ROWS):
            self._ask("delete", self.name, ids=ids[start : start + ROWS])

    def _forget_broken(self, paths: Collection[str]) -> None:
        gone = [path for path in paths if path in self._broken]
        self._drop_facts("broken", gone)
        for path in gone:
            del self._broken[path]

    def touch(self, stats: Iterable[tuple[int, int, int]]) -> None:
        """(id, size, mtime_ns) of pictures whose file has another time and the same bytes."""
        stats = {i: more for i, *more in stats}
        if not stats:
            return
        self._still_mine()
        rows = self._rows(list(stats), [field for field, *_ in PICTURE[1:]] + ["code"])
        changed = [
            {**row, "code": row["code"][0], "size": stats[i][0], "mtime_ns": stats[i][1]} for i, row in rows.items()
        ]
        self._ask("upsert", self.name, changed)

    def note_broken(self, files: Collection[Broken]) -> None:
        """Remember files that are no readable pictures; a picture that was read there before is forgotten."""
        if not files:
            return
        self._still_mine()
        facts = {to_text(f.path): json.dumps([f.size, f.mtime_ns, f.reason]) for f in files}
        self._keep_facts("broken", facts)
        self._broken |= {file.path: file for file in files}
        self._forget(self._at([file.path for file in files]))

    def remove(self, which: Iterable[int | str]) -> int:
        """Forget pictures by id or path, or all that lie below a folder; returns how many were there."""
        if not self._there:
            return 0
        self._still_mine()
        which = list(which)
        ids, gone = set(self._rows([int(one) for one in which if not isinstance(one, str)], [])), []
        for path in (one for one in which if isinstance(one, str)):
            ids |= {row["id"] for row in self._all(self.name, below(path), ["id"])} | set(self._at([path]))
            inside = path.rstrip("/") + "/"
            gone += [b for b in self._broken if b == path or b.startswith(inside)]
        self._forget(sorted(ids))
        self._forget_broken(gone)
        return len(ids)

    def _forget(self, ids: Sequence[int]) -> None:
        """Remove pictures, and the folders that hold none any more."""
        if not ids:
            return
        folders = {os.path.dirname(to_path(row["path"])) for row in self._rows(ids, ["path"]).values()}
        self._delete(ids)
        self._count("", "Strong")  # from here on what was removed is not seen
        empty = [f for f in folders if not self._count(f"folder_key == {key_of(to_text(f))}")]
        self._drop_facts("folder", empty)
        self._folders -= set(empty)


def _stored(i: int, row: Row) -> dict:
    path, folder = to_text(row.path), to_text(os.path.dirname(row.path))
    return {
        "id": i,
        "path": path,
        "path_key": key_of(path),
        "folder_key": key_of(folder),
        "label": os.path.basename(folder),
        "digest": row.digest.hex(),
        "digest_key": key_of(row.digest),
        "size": row.size,
        "mtime_ns": row.mtime_ns,
        "taken": row.taken,
        "code": np.asarray(row.code, np.uint8).tobytes(),
    }


def _record(row: dict) -> Record:
    path = to_path(row["path"])
    label = os.path.basename(os.path.dirname(path)) or None
    return Record(
        row["id"], path, row["size"], row["mtime_ns"], row["digest"], label, row["id"] / 1e6, float(row["taken"])
    )


def _code(row: dict) -> np.ndarray:
    return np.frombuffer(row["code"][0], np.uint8)


def started(process: int) -> str | None:
    """When a process on this machine was started, as the kernel counts; None: it is not there."""
    try:
        with open(f"/proc/{process}/stat") as file:
            return file.read().rpartition(")")[2].split()[19]
    except OSError:
        return None


def told(error: Exception) -> tuple[object, str]:
    """(code, message) of an error of pymilvus or gRPC."""
    code = getattr(error, "code", None)
    text = getattr(error, "message", None) or getattr(error, "details", str)() or error
    return code() if callable(code) else code, str(text)


def parsed(name: str) -> tuple[str, str, str]:
    """(address for the client, collection, consistency level) of an index's name.

    Raises:
        UserError: it is none, or holds credentials.
    """
    url = urllib.parse.urlsplit(name)
    try:
        host, port = url.hostname, url.port or 19530
    except ValueError:
        host = None
    collection, options = url.path.strip("/"), urllib.parse.parse_qs(url.query)
    level = options.pop("consistency", [LEVELS[0]])[-1]
    if url.username or url.password:
        raise UserError("--index: credentials don't belong in an address; set MILVUS_TOKEN=USER:PASSWORD")
    if not host or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", collection) or options or url.fragment:
        raise UserError(f"{name}: no index's address; write milvus://HOST:PORT/NAME, NAME of letters, digits and _")
    if level not in LEVELS:
        raise UserError(f"{name}: consistency is one of {', '.join(LEVELS)}")
    host = f"[{host}]" if ":" in host else host
    return f"{'https' if url.scheme == 'milvus+tls' else 'http'}://{host}:{port}", collection, level
