"""The index of a search: paths, sizes, times, content hashes, thumbnails and codes of pictures in one SQLite file.

One process writes, any number read meanwhile and see each transaction at once (SQLite's WAL mode). The codes lie in
blocks of ``BLOCK`` ids, with a checksum each, and are read into memory by the first search; later only blocks that
have changed are. Nothing is written by a search.
"""

import calendar
import contextlib
import json
import os
import sqlite3
import threading
import time
import unicodedata
import urllib.parse
import uuid
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from search.scan import BLOCK, Block, Snapshot, nearest
from utils.errors import UserError, first_line
from utils.files import held_file

FORMAT = 3
# A blob at the end of a page, new in every transaction: the mark, the link of the one before, and its own. By it a log
# (SQLite's WAL) tells which state of which file it goes on from; SQLite itself would replay any.
MARK, LINK = b"brcdlink", 16
APPLICATION = 0x42524344  # in the file's header: whose SQLite file it is
CACHE = 32768  # KiB of the file, at most, that a process keeps in memory beside the codes
SHORT = 16  # hexadecimal digits of a digest by which an address names a picture
SELECTIONS, SELECTED = 4, 10**7  # filters whose selections are kept, and pictures of all before one more is
SCHEMA = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE folders (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, label BLOB);
CREATE TABLE pictures (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never used twice
    folder INTEGER NOT NULL, name BLOB NOT NULL, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL,
    digest BLOB NOT NULL, taken REAL NOT NULL, added REAL NOT NULL,
    UNIQUE (folder, name)
);
CREATE INDEX pictures_digest ON pictures (digest);
CREATE INDEX pictures_taken ON pictures (taken);
CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL);
CREATE TABLE blocks (
    number INTEGER PRIMARY KEY, version INTEGER NOT NULL, pictures INTEGER NOT NULL,
    places BLOB NOT NULL, codes BLOB NOT NULL, checksum INTEGER NOT NULL
);
CREATE INDEX blocks_version ON blocks (version);
CREATE TABLE broken (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, reason TEXT NOT NULL, reader TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID;
INSERT INTO facts VALUES ('version', 0);
"""
LINKED = "CREATE TABLE IF NOT EXISTS links (link BLOB NOT NULL)"
NEXT_LINK = f"CAST(substr(link, 1, {len(MARK)}) || substr(link, -{LINK}) || randomblob({LINK}) AS BLOB)"
# What a format-1 index lacks: who read a broken file, and times that are local to the picture.
TO_FORMAT_2 = """
ALTER TABLE broken ADD COLUMN reader TEXT NOT NULL DEFAULT '';
UPDATE pictures SET taken = wall(taken);
"""
# Codes of format 2 are of pixels that left colour profiles alone: the next add of their folders looks at all files.
TO_FORMAT_3 = "UPDATE pictures SET mtime_ns = mtime_ns - 1 WHERE mtime_ns > 0;"
BY_PATH = "SELECT p.id FROM folders AS f JOIN pictures AS p ON p.folder = f.id"
OF_IDS = "FROM json_each(?) AS j CROSS JOIN pictures AS p ON p.id = j.value JOIN folders AS f ON f.id = p.folder"
BLOCKS = "SELECT number, pictures, places, codes, checksum FROM blocks WHERE"
WRONG = {
    "pictures WHERE folder NOT IN (SELECT id FROM folders)": "pictures lie in no folder",
    "pictures WHERE length(digest) <> 32": "pictures have no content hash",
    "pictures WHERE id NOT IN (SELECT id FROM thumbnails)": "pictures have no thumbnail",
    "thumbnails WHERE id NOT IN (SELECT id FROM pictures)": "thumbnails are of no picture",
    "thumbnails WHERE length(jpeg) > 0 AND substr(jpeg, 1, 2) <> x'ffd8'": "thumbnails are no JPEG",
}
DAMAGED = "damaged; put a copy in its place, or add your pictures to a new index"
REFUSALS = {
    "SQLITE_FULL": "no space is left on the disk; free some: what was added before is kept",
    "SQLITE_READONLY": "it can't be written; change its permissions and its folder's",
    "SQLITE_CANTOPEN": "it can't be opened; it and its folder must be readable, and writable while somebody adds",
    "SQLITE_PERM": "permission denied",
    "SQLITE_BUSY": "another process is at work there; wait for its end",
    "SQLITE_IOERR": "the disk can't be read or written",
    "SQLITE_CORRUPT": DAMAGED,
    "SQLITE_NOTADB": "no index, or a damaged one (not a SQLite file)",
}


@dataclass(frozen=True)
class Filters:
    """Which pictures are searched: all that every given condition holds for.

    Args:
        folder: they lie in it or below it.
        label: name of the folder that they lie in.
        after, before: when they were taken, as ``wall`` has times; from ``after`` on, and earlier than ``before``.
    """

    folder: str | None = None
    label: str | None = None
    after: float | None = None
    before: float | None = None


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that was found, ``distance`` bits away; content: see ``AnyIndex.find``; the rest as ``Record``'s."""

    id: int
    path: str
    distance: int
    content: str
    size: int
    taken: float


@dataclass(frozen=True)
class Record:
    """What is known of a picture; label: its folder's name; added: seconds since 1970; taken: as ``wall`` has times."""

    id: int
    path: str
    size: int
    mtime_ns: int
    digest: str
    label: str | None
    added: float
    taken: float


@dataclass(frozen=True)
class Row:
    """A picture to be added: code uint8 [w], digest: SHA-256 of the file, thumbnail: JPEG (b"" for none)."""

    path: str
    size: int
    mtime_ns: int
    digest: bytes
    code: np.ndarray
    thumbnail: bytes
    taken: float


@dataclass(frozen=True)
class Broken:
    """A file that is no readable picture; not tried again as long as its size and time stay, by the same reader."""

    path: str
    size: int
    mtime_ns: int
    reason: str
    reader: str = ""


class AnyIndex:
    """What the index in a file and the one in Milvus have in common; ``path`` is what --index names."""

    path: Path | str
    most: int | None = None  # results a query, at most
    keeps_thumbnails = True  # else they are made of the files
    opened = 0  # how often: another index may lie there by now

    def note(self, name: str, value: object) -> None:
        """Keep something of the last ``add`` for ``info``; nothing where there is no room for it."""

    def noted(self, name: str) -> dict:
        return {}

    def move(self, old: str, new: str) -> int:
        raise UserError(f"{self.path}: only an index in a file can be moved; add the folder anew")

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """Nothing: what others write meanwhile is seen, where an index has no transactions."""
        yield

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def make_approximate(self) -> None:
        """Only an index in Milvus has lists."""

    def recall(self) -> tuple[float, int]:
        """(share, k): how many of the exact k nearest are found; in a file all."""
        return 1.0, 1

    if TYPE_CHECKING:  # what each has by itself

        @property
        def card(self) -> dict | None: ...
        @property
        def student(self) -> str | None: ...
        def close(self) -> None: ...
        def __len__(self) -> int: ...
        def records(self, ids: Sequence[int]) -> list[Record]: ...
        def _rankings(self, codes: np.ndarray, where: Filters) -> Iterator[Callable]: ...
        def _paths(self, ids: np.ndarray) -> dict[int, tuple[str, str, int, float]]: ...

    @property
    def bits(self) -> int:
        card = self.card
        return card["bits"] if card else 0

    @property
    def width(self) -> int:
        """Bytes a code."""
        return -(-self.bits // 8)

    def record(self, picture: int) -> Record:
        """As ``records``, of one."""
        return self.records([picture])[0]

    def _refuse_other(self, card: dict) -> None:
        """UserError: another model than this card's has hashed the pictures that are here."""
        if (n := len(self)) and (not (known := self.card) or known["model_sha256"] != card["model_sha256"]):
            raise UserError(
                f"{self.path}: its {n:,} pictures were hashed by another model "
                f"({named(known) if known else 'unknown'}; this one is {named(card)}); codes of two models can't be "
                "compared: name that one, or make a new index"
            )

    def _known(self, card: dict) -> str | None:
        """Where the model of this card lies, if that is known."""
        return self.student if (known := self.card) and known["model_sha256"] == card["model_sha256"] else None

    def search(
        self, codes: np.ndarray, k: int, radius: int | None = None, where: Filters = Filters(), unique: bool = False
    ) -> list[list[Hit]]:
        """The k nearest pictures of every code, nearest first; ties in the order added.

        Args:
            codes: packed, uint8 [q, w]; all are searched together.
            k: at most so many.
            radius: only those at most so many bits away.
            where: only these pictures.
            unique: of files with the same bytes only the one added first.
        """
        opened = self.opened
        for ranked in self._rankings(codes, where):
            hits = self._hits(ranked, k, radius, unique)
            if hits is not None and opened == self.opened:
                return hits
            opened = self.opened
        raise UserError(f"{self.path}: damaged (it has codes of pictures that it does not know); see `search check`")

    def _hits(self, ranked: Callable, k: int, radius: int | None, unique: bool) -> list[list[Hit]] | None:
        """None where a picture that was found is no longer there, so that there is something newer to search.

        Args:
            ranked: gives (distances, ids) of every code's nearest, of how many it is asked for.
        """
        wanted = k
        while True:
            lists, unsure, found = [], False, ranked(wanted)
            facts = self._paths(np.unique(np.concatenate([[], *(ids for _, ids in found)]).astype(np.int64)))
            for distances, ids in found:
                near = len(ids) if radius is None else np.searchsorted(distances, radius, side="right")
                pairs = zip(ids[:near].tolist(), distances[:near].tolist(), strict=True)
                try:
                    hits = [Hit(i, facts[i][0], distance, facts[i][1][:SHORT], *facts[i][2:]) for i, distance in pairs]
                except KeyError:
                    return None
                if unique:
                    first: dict[str, Hit] = {}
                    for hit in hits:
                        first.setdefault(facts[hit.id][1], hit)
                    hits = list(first.values())
                    unsure |= len(hits) < k and near == len(ids) == wanted
                lists.append(hits[:k])
            if not unsure:
                return lists
            if wanted == self.most:
                raise UserError(f"{self.path}: more than {wanted:,} copies are nearest; search without --unique")
            wanted = min(4 * wanted, self.most or 4 * wanted)  # copies have taken places


class Index(AnyIndex):
    """An index on disk. Paths are absolute and may be of any bytes (surrogateescape).

    Ids are never used twice, and their order is the order added. Methods may be called from any thread.

    Args:
        path: the file.
        write: also change it: it is made where there is none. One process may, at a time.

    Raises:
        UserError: no index there, one of a newer version, a damaged one, another process is writing; any method may
            say so of a damaged file or a full disk.
    """

    def __init__(self, path: Path, write: bool = False):
        self.path: Path = Path(os.path.abspath(path))
        self._lock, self._held = threading.RLock(), None
        self._con: sqlite3.Connection | None = None
        self._file: tuple | None = None
        self._snapshot: Snapshot | None = None
        if self.path.is_dir():
            raise UserError(f"{path}: a folder; --index takes the index's file")
        if write:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            taken = f"{self.path}: another process is adding to it or removing; wait for its end"
            self._held = held_file(Path(f"{self.path}.lock"), taken)
        elif not self.path.exists():
            raise UserError(f"{path}: no such index; make one: python -m search add --index {path} --student ...")
        try:
            self._open(write)
        except BaseException:
            self.close()
            raise

    def _open(self, write: bool) -> None:
        self._check_log()
        self._let_go()
        # Where no file can be made beside it, which readers share, none writes either.
        still = not write and not os.access(self.path.parent, os.W_OK) and not self._log().exists()
        with self._refusing():
            self._con = con = self._connected(f"mode={'rwc' if write else 'rw'}{'&immutable=1' * still}")
            con.execute(f"PRAGMA query_only = {int(not write)}")
            con.execute(f"PRAGMA cache_size = -{CACHE}")
            con.create_function("nfc", 1, nfc, deterministic=True)
        self._check_format(write)
        self._still, self._file, self._linked, self.opened = still, state_of(self.path), self._link(), self.opened + 1

    def _connected(self, how: str) -> sqlite3.Connection:
        where = f"file:{urllib.parse.quote(os.fsencode(self.path))}?{how}"
        return sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False, timeout=30)

    def _log(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    def _link(self) -> bytes | None:
        """The last transaction that the file itself holds, whatever log lies beside it."""
        if not self.path.exists() or not self.path.stat().st_size:
            return b""
        with (
            contextlib.suppress(sqlite3.Error, TypeError),
            contextlib.closing(self._connected("mode=ro&immutable=1")) as con,
        ):
            return con.execute("SELECT substr(link, -?) FROM links", [LINK]).fetchone()[0]
        return None

    def _check_log(self) -> None:
        """UserError: the log beside the file goes on from another state or another file; nothing is touched."""
        before = None
        while (now := (self._link(), links_of(self._log()))) != before:  # twice: somebody may write meanwhile
            link, links = before = now
            if link is None or not links or link in links:
                return
            time.sleep(0.05)
        raise UserError(
            f"{self.path}: {self._log()} beside it belongs to another index or to another state of this one "
            "(was a copy put back?); to use the index as it is, move it away; with its own index it is whole"
        )

    def _follow(self) -> None:
        """Open anew where another index lies at the path by now, or somebody writes to one that nobody wrote to."""
        if self._con is not None and (self._file is None or self._con.in_transaction):
            return  # while it is opened, and within what is of one moment
        try:
            now = state_of(self.path)
        except FileNotFoundError:
            raise UserError(f"{self.path}: the index is gone (moved or deleted?); put it back") from None
        if now == self._file and not (self._still and self._log().exists()):
            return
        same = self._file is not None and self._file[:2] == now[:2] and not self._still
        if same and (self._held or self._link() in {self._linked, *links_of(self._log())}):  # the log was taken in
            self._file = now
            return
        if self._held:
            raise UserError(f"{self.path}: another index was put there meanwhile; run the same command again")
        try:
            self._open(write=False)
        except BaseException:
            self._let_go()  # the next who asks tries again
            raise

    def _let_go(self) -> None:
        if self._con is not None:
            self._con.close()
        self._con = self._file = self._seen = self._snapshot = None

    def _check_format(self, write: bool) -> None:
        with self._asking() as con:
            if write and not con.execute("SELECT 1 FROM sqlite_master").fetchone():
                if con.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
                    raise UserError(f"{self.path}: can't be shared by processes there; put it on a local disk")
                con.executescript(
                    f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT}; COMMIT;"
                )
            application, version = (
                con.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
            )
        if application != APPLICATION:
            raise UserError(f"{self.path}: a SQLite file, but no index of pictures; name another by --index")
        self._format = version
        if write and version < FORMAT:
            self._upgrade()
        if version > FORMAT:
            raise UserError(
                f"{self.path}: made by a newer version of this program (format {version}, this one knows {FORMAT}); "
                "update it, or add your pictures to a new index"
            )
        if write:
            with self._asking() as con:
                con.execute("INSERT OR IGNORE INTO facts VALUES ('identity', ?)", [uuid.uuid4().hex])
                con.execute(LINKED)
                first = "INSERT INTO links SELECT ? WHERE NOT EXISTS (SELECT 1 FROM links)"
                con.execute(first, [MARK + bytes(LINK) + os.urandom(LINK)])

    def _upgrade(self) -> None:
        with self._asking() as con:
            con.create_function("wall", 1, wall)
            steps = (TO_FORMAT_2 * (self._format == 1) + TO_FORMAT_3) * (self._format > 0)
            con.executescript(f"BEGIN; {steps} PRAGMA user_version = {FORMAT}; COMMIT;")
        self._format = FORMAT

    @property
    def identity(self) -> str:
        """A name that no other index has; "" of one that has not been written to since it got none."""
        return str(self._fact("identity") or "")

    @property
    def generation(self) -> int:
        """Grows with every transaction that changes something."""
        return int(self._fact("version"))

    @property
    def newest(self) -> float | None:
        """When the last picture was added, in seconds since 1970."""
        with self._reading() as con:
            row = con.execute("SELECT added FROM pictures ORDER BY id DESC LIMIT 1").fetchone()
            return row and row[0]

    def note(self, name: str, value: object) -> None:
        if self.noted(name) != value:
            with self.transaction() as con:
                con.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", [f"noted {name}", json.dumps(value)])

    def noted(self, name: str) -> dict:
        with self._reading():
            return json.loads(self._fact(f"noted {name}") or "{}")

    def close(self) -> None:
        if self._con is not None:
            with contextlib.suppress(sqlite3.Error):
                if self._held:  # an empty log can't be left over, whoever else has the index open
                    self._con.execute("PRAGMA busy_timeout = 1000")
                    self._con.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._con.close()
            self._file = None
        if self._held is not None:
            self._held.release()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[sqlite3.Connection]:
        """The connection to what lies at the path now, one thread at a time; what SQLite refuses is one line."""
        with self._lock, self._refusing():
            self._follow()
            assert self._con is not None
            yield self._con

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: of a damaged schema
            name = getattr(error, "sqlite_errorname", "")
            known = next((what for kind, what in REFUSALS.items() if name.startswith(kind)), None)
            if known is None and name in ("", "SQLITE_ERROR") and not isinstance(error, sqlite3.ProgrammingError):
                known = DAMAGED
            if known is None:
                raise
            raise UserError(f"{self.path}: {known} ({first_line(error)})") from None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The same for what only reads: values that are not of their kind are a damaged file too."""
        with self._asking() as con:
            try:
                yield con
            except (TypeError, ValueError, AttributeError) as error:
                raise UserError(f"{self.path}: {DAMAGED} ({first_line(error)})") from None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is written as a whole or not at all."""
        with self._asking() as con:
            if con.in_transaction:
                yield con
                return
            con.execute("BEGIN IMMEDIATE")
            try:
                con.execute("UPDATE facts SET value = value + 1 WHERE name = 'version'")
                con.execute(f"UPDATE links SET link = {NEXT_LINK}")
                before = con.total_changes
                yield con
                con.execute("COMMIT" if con.total_changes > before else "ROLLBACK")
            except BaseException:
                self._snapshot = None  # it may have been of what is not kept
                with contextlib.suppress(sqlite3.Error):
                    con.execute("ROLLBACK")
                raise
            finally:
                self._seen = None  # SQLite's data_version counts what others write

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[None]:
        """All that is read inside is of one moment, whatever others write meanwhile."""
        with self._asking() as con:
            if con.in_transaction:
                yield
                return
            con.execute("BEGIN")
            try:
                con.execute("SELECT 1 FROM facts LIMIT 1").fetchone()  # now: BEGIN waits for the first reading
                yield
            finally:
                with contextlib.suppress(sqlite3.Error):
                    con.execute("ROLLBACK")

    def _fact(self, name: str) -> Any:
        with self._reading() as con:
            row = con.execute("SELECT value FROM facts WHERE name = ?", [name]).fetchone()
            return row and row[0]

    # The model

    @property
    def card(self) -> dict | None:
        """The card of the exported model that hashed the pictures; None where there is none yet."""
        with self._reading():
            card = json.loads(self._fact("card") or "null")
            if card is not None and not (isinstance(card["bits"], int) and isinstance(card["model_sha256"], str)):
                raise ValueError("its card")
            return card

    @property
    def student(self) -> str | None:
        """The folder that the exported model lay in."""
        with self._reading():
            return _text(self._fact("student"))

    def set_card(self, card: dict, student: str | None = None) -> None:
        """Say which model hashes the pictures, and where it lies; None leaves that as it is.

        Raises:
            UserError: another one has hashed those that are here.
        """
        self._refuse_other(card)
        student = student or self._known(card)
        if (self.card, self.student) == (card, student):
            return
        with self.transaction() as con:
            facts = {"card": json.dumps(card), "student": os.fsencode(student) if student else None}
            con.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts.items())

    # Searching

    def __len__(self) -> int:
        with self._reading() as con:
            return int(con.execute("SELECT coalesce(sum(pictures), 0) FROM blocks").fetchone()[0])

    def _now(self) -> Snapshot:
        """The codes as they are; read again where a transaction has changed them."""
        with self._reading() as con:
            seen = con.execute("PRAGMA data_version").fetchone()[0]
            if seen != self._seen or self._snapshot is None:
                self._snapshot = self._read_codes(con)
                self._seen = seen
            return self._snapshot

    def _read_codes(self, con: sqlite3.Connection) -> Snapshot:
        writing = con.in_transaction and self._held is not None
        with self.at_one_moment():
            version, width, known = self._fact("version"), self.width, self._snapshot
            if known is not None and known.codes.shape[1] != width:  # emptied, and of another model now
                known = None
            rows = con.execute(f"{BLOCKS} version > ? ORDER BY number", [-1 if known is None else known.version])
            blocks = (self._block(row, width) for row in rows)
            if known is None:
                snapshot = Snapshot(blocks, len(self), width)
            else:
                snapshot = known.changed(new) if (new := list(blocks)) else known
            if not len(snapshot) and con.execute("SELECT 1 FROM pictures LIMIT 1").fetchone():
                raise UserError(f"{self.path}: {DAMAGED} (it has lost its codes)")
            snapshot.version = version - writing  # what is to come in this transaction has the same version
            return snapshot

    def _block(self, row: tuple, width: int) -> Block:
        number, pictures, places, codes, checksum = row
        widths = 2 * pictures, width * pictures
        if (len(places), len(codes)) != widths or zlib.crc32(codes, zlib.crc32(places)) != checksum:
            raise UserError(f"{self.path}: {DAMAGED} (codes of ids from {number * BLOCK})")
        return number, np.frombuffer(places, "<u2"), np.frombuffer(codes, np.uint8).reshape(-1, width)

    def _selection(self, where: Filters) -> tuple[Snapshot, np.ndarray | None, np.ndarray]:
        """The codes as they are; the rows (None: all) and codes that a filter lets through, of the same moment."""
        with self._reading() as con, self.at_one_moment():
            snapshot = self._now()
            if where == Filters():
                return snapshot, None, snapshot.codes
            kept = snapshot.selections
            if where not in kept:
                condition, values = _condition(where)
                ids = con.execute(f"SELECT id FROM pictures WHERE {condition} ORDER BY id", values)
                rows = snapshot.rows(np.fromiter((i for (i,) in ids), np.int64))
                while len(kept) >= SELECTIONS or sum(len(r) for r, _ in kept.values()) > SELECTED:
                    del kept[next(iter(kept))]
                kept[where] = rows, np.ascontiguousarray(snapshot.codes[rows])
            return snapshot, *kept[where]

    def count(self, where: Filters = Filters()) -> int:
        """How many pictures a search with these filters looks at."""
        return len(self._selection(where)[-1])

    def nearest(self, codes: np.ndarray, k: int, where: Filters = Filters()) -> tuple[np.ndarray, np.ndarray]:
        """(distances int32, ids int64) [q, min(k, pictures)] of the nearest, ascending; ties in the order added."""
        return _nearest(codes, k, *self._selection(where))

    def _rankings(self, codes: np.ndarray, where: Filters) -> Iterator[Callable]:
        """Of the codes as they are, again as long as they change."""
        before = None
        while (now := self._selection(where))[0] is not before:
            yield lambda k, now=now: list(zip(*_nearest(codes, k, *now), strict=True))
            before = now[0]

    def _paths(self, ids: np.ndarray) -> dict[int, tuple[str, str, int, float]]:
        """(path, digest, size, taken) of those ids that are there."""
        what = "p.id, f.path, p.name, p.digest, p.size, p.taken"
        with self._reading() as con:
            rows = con.execute(f"SELECT {what} {OF_IDS}", [json.dumps(ids.tolist())])
            return {i: (_joined(folder, name), digest.hex(), *more) for i, folder, name, digest, *more in rows}

    # What is known of pictures

    def records(self, ids: Sequence[int]) -> list[Record]:
        """What is known of pictures.

        Raises:
            KeyError: one that is not there.
        """
        wanted = json.dumps(list(map(int, ids)))
        with self._reading() as con:
            rows = con.execute(
                f"SELECT p.id, f.path, p.name, p.size, p.mtime_ns, p.digest, f.label, p.added, p.taken {OF_IDS}",
                [wanted],
            )
            known = {
                picture: Record(picture, _joined(folder, name), size, mtime_ns, digest.hex(), _text(label), *times)
                for picture, folder, name, size, mtime_ns, digest, label, *times in rows
            }
        return [known[i] for i in ids]

    def newest_first(self, where: Filters, start: int, n: int) -> tuple[int, list[Record]]:
        """How many pictures a filter lets through, and n of them from ``start`` on, those taken last first."""
        condition, values = _condition(where)
        page = f"SELECT id FROM pictures WHERE {condition} ORDER BY taken DESC, id DESC LIMIT ? OFFSET ?"
        with self._reading() as con, self.at_one_moment():
            (count,) = con.execute(f"SELECT count(*) FROM pictures WHERE {condition}", values).fetchone()
            return count, self.records([i for (i,) in con.execute(page, [*values, n, start])])

    def find(self, content: str) -> Record:
        """The picture whose digest begins so (of copies the one added first): what an address names, since ids are
        places, and another index has others there. KeyError: not there."""
        if len(content) == SHORT and all(digit in "0123456789abcdef" for digit in content):
            first = bytes.fromhex(content)
            with self._reading() as con:
                among = [first, first.ljust(32, b"\xff")]
                row = con.execute("SELECT id FROM pictures WHERE digest BETWEEN ? AND ? ORDER BY id", among).fetchone()
                if row:
                    return self.record(row[0])
        raise KeyError(content)

    def thumbnail(self, picture: int) -> bytes:
        """A JPEG of at most ``search.adding.THUMBNAIL`` pixels a side. KeyError: not there."""
        picture = int(picture)
        with self._reading() as con:
            row = con.execute("SELECT jpeg FROM thumbnails WHERE id = ?", [picture]).fetchone()
            if row is None and con.execute("SELECT 1 FROM pictures WHERE id = ?", [picture]).fetchone():
                raise UserError(f"{self.path}: {DAMAGED} (it has lost thumbnails)")
        if row is None:
            raise KeyError(picture)
        return row[0]

    def code_of(self, picture: int) -> np.ndarray:
        """uint8 [w]. KeyError: not there."""
        picture = int(picture)
        with self._reading() as con:
            row = con.execute(f"{BLOCKS} number = ?", [picture // BLOCK]).fetchone()
            if row is not None:
                _, places, codes = self._block(row, self.width)
                at = np.flatnonzero(places == picture % BLOCK)
                if len(at):
                    return codes[at[0]]
        raise KeyError(picture)

    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [n], codes uint8 [n, w]) in the order added."""
        snapshot = self._now()
        return snapshot.ids(np.arange(len(snapshot))), snapshot.codes

    def folders(self) -> list[str]:
        """Folders that pictures lie in, sorted."""
        with self._reading() as con:
            return [os.fsdecode(path) for (path,) in con.execute("SELECT path FROM folders ORDER BY path")]

    def broken(self) -> list[Broken]:
        """Files that are no readable pictures, sorted by path."""
        with self._reading() as con:
            reader = "reader" if self._format > 1 else "''"
            rows = con.execute(f"SELECT path, size, mtime_ns, reason, {reader} FROM broken ORDER BY path")
            return [Broken(os.fsdecode(path), *more) for path, *more in rows]

    def known(self, folder: str) -> dict[str, tuple[int, int, int]]:
        """(id, size, mtime_ns) by name of the pictures that lie right in a folder."""
        with self._reading() as con:
            rows = con.execute(
                "SELECT name, id, size, mtime_ns FROM pictures WHERE folder = (SELECT id FROM folders WHERE path = ?)",
                [os.fsencode(folder)],
            )
            return {os.fsdecode(name): (i, size, mtime_ns) for name, i, size, mtime_ns in rows}

    def same(self, digest: bytes) -> tuple[np.ndarray, bytes] | None:
        """(code, thumbnail) of a picture with these bytes, if there is one."""
        with self._reading() as con:
            row = con.execute("SELECT id FROM pictures WHERE digest = ? LIMIT 1", [digest]).fetchone()
            return row and (self.code_of(row[0]), self.thumbnail(row[0]))

    def info(self) -> dict:
        """What is in it, as plain values."""
        with self._reading() as con:
            folders, broken = (con.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("folders", "broken"))
        return {
            "index": str(self.path),
            "identity": self.identity,
            "generation": self.generation,
            "format": self._format,
            "passed_over": self.noted("passed over"),
            "excluded": self.noted("excluded").get("patterns", []),
            "pictures": len(self),
            "folders": folders,
            "broken": broken,
            "bits": self.bits,
            "model": self.card,
            "student": self.student,
            "bytes": sum(f.stat().st_size for f in (self.path, self._log()) if f.exists()),
        }

    def faults(self) -> list[str]:
        """What is wrong with the index in itself, a line each."""
        try:
            with self._reading() as con, self.at_one_moment():
                found = [row[0] for row in con.execute("PRAGMA integrity_check(5)")]
                return [first_line(line) for line in found if line != "ok"] or self._wrong_rows(con)
        except UserError as error:
            return [str(error)]

    def _wrong_rows(self, con: sqlite3.Connection) -> list[str]:
        counts = [(con.execute(f"SELECT count(*) FROM {sql}").fetchone()[0], what) for sql, what in WRONG.items()]
        faults = [f"{count:,} {what}" for count, what in counts if count]
        width, spare = self.width, -self.bits % 8
        for row in con.execute(f"{BLOCKS} 1 ORDER BY number"):
            number, places, codes = self._block(row, width)
            first = number * BLOCK
            ids = con.execute(
                "SELECT id FROM pictures WHERE id BETWEEN ? AND ? ORDER BY id", [first, first + BLOCK - 1]
            )
            if [i - first for (i,) in ids] != places.tolist():
                faults.append(f"ids from {first}: pictures and codes are not of the same ids")
            if spare and len(codes) and (codes[:, -1] & (1 << spare) - 1).any():
                faults.append(f"ids from {first}: codes of more than {self.bits} bits")
        known = con.execute("SELECT count(*) FROM pictures").fetchone()[0]
        if known != len(self):
            faults.append(f"{known:,} pictures, {len(self):,} codes")
        if known and not self.bits:
            faults.append("it does not say which model hashed it")
        return faults

    # Writing; each method is a transaction

    def add(self, rows: Sequence[Row]) -> list[int]:
        """Add pictures, in this order; returns their ids. One whose path is there already takes its place, by a new id.

        Raises:
            ValueError: a code of another width than the card's, or a path given twice.
        """
        if not rows:
            return []
        codes = np.array([row.code for row in rows], np.uint8)
        if codes.shape[1] != self.width or len({row.path for row in rows}) < len(rows):
            raise ValueError(f"codes of {codes.shape[1]} bytes for an index of {self.width}, or a path given twice")
        with self.transaction() as con:
            now, folders = time.time(), {}
            split = [os.path.split(os.fsencode(row.path)) for row in rows]
            before = [con.execute(f"{BY_PATH} WHERE f.path = ? AND p.name = ?", names).fetchone() for names in split]
            self._forget(con, [found[0] for found in before if found])
            for folder in {folder for folder, _ in split}:
                label = os.path.basename(folder) or None
                con.execute("INSERT OR IGNORE INTO folders (path, label) VALUES (?, ?)", [folder, label])
                folders[folder] = con.execute("SELECT id FROM folders WHERE path = ?", [folder]).fetchone()[0]
            last = con.execute("SELECT seq FROM sqlite_sequence WHERE name = 'pictures'").fetchone()
            ids = range(first := last[0] + 1 if last else 1, first + len(rows))
            con.executemany(
                "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (i, folders[folder], name, row.size, row.mtime_ns, row.digest, row.taken, now)
                    for i, (folder, name), row in zip(ids, split, rows, strict=True)
                ),
            )
            con.executemany(
                "INSERT INTO thumbnails VALUES (?, ?)", ((i, row.thumbnail) for i, row in zip(ids, rows, strict=True))
            )
            con.executemany("DELETE FROM broken WHERE path = ?", ([os.fsencode(row.path)] for row in rows))
            self._write_codes(con, np.arange(ids.start, ids.stop), codes)
        return list(ids)

    def touch(self, stats: Iterable[tuple[int, int, int]]) -> None:
        """(id, size, mtime_ns) of pictures whose file has another time and the same bytes."""
        with self.transaction() as con:
            con.executemany("UPDATE pictures SET size = ?2, mtime_ns = ?3 WHERE id = ?1", list(stats))

    def note_broken(self, files: Collection[Broken]) -> None:
        """Remember files that are no readable pictures; a picture that was read there before is forgotten."""
        with self.transaction() as con:
            self.remove([file.path for file in files])
            con.executemany(
                "INSERT OR REPLACE INTO broken VALUES (?, ?, ?, ?, ?)",
                [(os.fsencode(f.path), f.size, f.mtime_ns, f.reason, f.reader) for f in files],
            )

    def remove(self, which: Iterable[int | str]) -> int:
        """Forget pictures by id or path, or all that lie below a folder; returns how many were there."""
        with self.transaction() as con:
            ids = set()
            for one in which:
                if isinstance(one, str):
                    path = os.fsencode(one)
                    condition, values = _below("nfc(f.path)", nfc(path))
                    named = "nfc(f.path) = ? AND nfc(p.name) = ?", os.path.split(nfc(path))
                    for sql, given in ((condition, values), named):
                        ids |= {i for (i,) in con.execute(f"{BY_PATH} WHERE {sql}", given)}
                    condition, values = _below("nfc(path)", nfc(path))
                    con.execute(f"DELETE FROM broken WHERE {condition}", values)
                else:
                    ids |= {i for (i,) in con.execute("SELECT id FROM pictures WHERE id = ?", [int(one)])}
            self._forget(con, sorted(ids))
        return len(ids)

    def move(self, old: str, new: str) -> int:
        """Pictures below the folder ``old`` lie below ``new`` by now; returns how many.

        Raises:
            UserError: there are none, or some lie at ``new`` already.
        """
        before, after = (os.fsencode(path.rstrip("/")) for path in (old, new))
        condition, values = _below("path", before)
        with self.transaction() as con:
            folders = con.execute(f"SELECT id, path FROM folders WHERE {condition}", values).fetchall()
            if not folders:
                raise UserError(f"{old}: no picture of this index lies there")
            there, given = _below("path", after)
            if con.execute(f"SELECT 1 FROM folders WHERE {there} LIMIT 1", given).fetchone():
                raise UserError(f"{new}: pictures of this index lie there already; remove one of both")
            moved = [(after + path[len(before) :], number) for number, path in folders]
            con.executemany(
                "UPDATE folders SET path = ?, label = ? WHERE id = ?",
                [(path, os.path.basename(path) or None, number) for path, number in moved],
            )
            con.execute(f"DELETE FROM broken WHERE {condition}", values)  # they are looked at again
            of = "SELECT count(*) FROM pictures WHERE folder = ?"
            return sum(con.execute(of, [number]).fetchone()[0] for _, number in moved)

    def _forget(self, con: sqlite3.Connection, ids: Sequence[int]) -> None:
        if not ids:
            return
        for table in ("pictures", "thumbnails"):
            con.executemany(f"DELETE FROM {table} WHERE id = ?", ([i] for i in ids))
        con.execute("DELETE FROM folders WHERE NOT EXISTS (SELECT 1 FROM pictures WHERE pictures.folder = folders.id)")
        gone = np.array(ids)
        for number in np.unique(gone // BLOCK).tolist():
            _, places, codes = self._stored_block(con, number)
            kept = ~np.isin(places, gone[gone // BLOCK == number] % BLOCK)
            self._write_block(con, number, places[kept], codes[kept])

    def _write_codes(self, con: sqlite3.Connection, ids: np.ndarray, codes: np.ndarray) -> None:
        """Codes of new ids, ascending and greater than all before."""
        for number in np.unique(ids // BLOCK).tolist():
            here = ids // BLOCK == number
            _, places, known = self._stored_block(con, number)
            self._write_block(con, number, np.append(places, ids[here] % BLOCK), np.append(known, codes[here], 0))

    def _stored_block(self, con: sqlite3.Connection, number: int) -> Block:
        row = con.execute(f"{BLOCKS} number = ?", [number]).fetchone()
        return self._block(row or (number, 0, b"", b"", 0), self.width)

    def _write_block(self, con: sqlite3.Connection, number: int, places: np.ndarray, codes: np.ndarray) -> None:
        self._seen = None
        at, packed = places.astype("<u2").tobytes(), codes.tobytes()
        row = [number, self._fact("version"), len(places), at, packed, zlib.crc32(packed, zlib.crc32(at))]
        con.execute("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?, ?, ?)", row)


def state_of(path: Path) -> tuple:
    stat = path.stat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def links_of(log: Path) -> set[bytes]:
    """The transactions that a log holds, and the one that it goes on from; empty where there is none of ours."""
    try:
        content = np.fromfile(log, np.uint8)
    except FileNotFoundError:
        return set()
    page = int.from_bytes(content[8:12].tobytes(), "big")
    if len(content) < 32 or not 512 <= page <= 65536:
        return set()
    frames = content[32:][: (len(content) - 32) // (page + 24) * (page + 24)].reshape(-1, page + 24)
    now = (frames[:, 8:16] == content[16:24]).all(1)  # others are of a log that was begun anew since
    ends = frames[:, -len(MARK) - 2 * LINK :]
    links = [end.tobytes()[len(MARK) :] for end in ends[now] if end.tobytes().startswith(MARK)]
    return {links[0][:LINK], *(link[LINK:] for link in links)} if links else set()


def named(card: dict) -> str:
    """A model in a few words."""
    return f"{card['role']} {card['backbone']}, {card['method']}, {card['bits']} bits, {card['model_sha256'][:12]}"


def _nearest(codes: np.ndarray, k: int, snapshot: Snapshot, rows: np.ndarray | None, database: np.ndarray) -> tuple:
    codes = np.ascontiguousarray(codes)
    if codes.dtype != np.uint8 or codes.ndim != 2 or (len(database) and codes.shape[1] != database.shape[1]):
        raise ValueError(f"codes must be uint8 [q, {database.shape[1]}], not {codes.dtype} {list(codes.shape)}")
    distances, at = nearest(codes, database, min(k, len(database)))
    return distances, snapshot.ids(at if rows is None else rows[at])


def _below(column: str, folder: bytes) -> tuple[str, list]:
    """SQL for paths that are ``folder`` or lie below it."""
    folder = folder.rstrip(b"/")
    return f"({column} = ? OR ({column} > ? AND {column} < ?))", [folder or b"/", folder + b"/", folder + b"0"]


def _condition(where: Filters) -> tuple[str, list]:
    """SQL for the pictures that a filter lets through."""
    below, paths = _below("nfc(path)", nfc(os.fsencode(where.folder or "")))
    label = "folder IN (SELECT id FROM folders WHERE nfc(label) = ?)", [nfc(os.fsencode(where.label or ""))]
    of = {"folder": (f"folder IN (SELECT id FROM folders WHERE {below})", paths), "label": label}
    of |= {"after": ("taken >= ?", [where.after]), "before": ("taken < ?", [where.before])}
    given = [of[name] for name in of if getattr(where, name) is not None]
    return " AND ".join(["1", *(sql for sql, _ in given)]), [value for _, values in given for value in values]


def nfc(name: Any) -> Any:
    """A name with its letters composed: file systems keep them either way, and a person types one."""
    return name and os.fsencode(unicodedata.normalize("NFC", os.fsdecode(name)))


def wall(moment: float) -> float:
    """What a clock on the wall here showed at a moment (seconds since 1970), in seconds since 1970 on that clock. A
    picture's own time is kept so: it is compared by its date where it was taken, not by this machine's zone."""
    with contextlib.suppress(OverflowError, ValueError, OSError):
        return calendar.timegm(time.localtime(moment)) + moment % 1
    return moment


def _joined(folder: bytes, name: bytes) -> str:
    return os.fsdecode(folder + name if folder.endswith(b"/") else folder + b"/" + name)


def _text(label: bytes | None) -> str | None:
    return None if label is None else os.fsdecode(label)
