"""The search page and its JSON API over one index.

What comes over the network is data, never a path, HTML or code; a query writes nothing.
"""

import asyncio
import calendar
import hashlib
import ipaddress
import os
import socket
import stat
import threading
import warnings
from asyncio import to_thread
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import faiss
import numpy as np
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Query, Request, UploadFile
from fastapi import Path as InPath
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response
from PIL import UnidentifiedImageError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.formparsers import MultiPartParser

from data.decode import FORMATS, HEAD, format_of, opened, pixels_of
from data.tree import time_of
from models.exported import Exported, may_ask
from search.adding import thumbnail_of
from search.asking import answers, facts, hashed
from search.copies import duplicates, look_of
from search.guard import MAX_BODY, MAX_UPLOAD, SECONDS, TOO_LARGE, Ascii, Guard, failure
from search.index import Filters, Index, Record
from utils.errors import UserError, first_line, many

PAGE = Path(__file__).parent / "page"
MAX_PIXELS = 64_000_000
LARGE = 25_000_000  # above what phones take
MAX_RATIO = 100  # of the sides: a network that sees the middle makes a strip huge before it crops
MAX_K = 1000
PREVIEW = 1600  # pixels of the longer side, at most
MAX_GROUPS = 1000  # of copies
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
# A picture that is opened by itself: it may run nothing, whatever is hidden in it.
ORIGINAL = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}


class Picture(BaseModel):
    path: str
    id: str = Field(description="of its content: of /thumbnail, /original and a further search, in any index")
    bytes: int
    taken: float = Field(description="in seconds since 1970, as a clock showed it there; of undated files their time")


class Result(Picture):
    rank: int = Field(description="from 1")
    distance: int = Field(description="bits that differ")


class Answer(BaseModel):
    query: str = Field(description="name of the file that was sent, or path of the indexed one")
    hash_ms: float = Field(description="decoding and hashing; 0 by id")
    search_ms: float
    searched: int = Field(description="pictures that were looked at")
    index: str = Field(description="a name that no other index has")
    generation: int = Field(description="of the index: grows with every change")
    likely_same: list[str] = Field(description="ids of the results that are likely the same picture, edited or not")
    results: list[Result] = Field(description="nearest first, ties in the order added")


class Info(BaseModel):
    index: str = Field(description="a name that no other index has")
    generation: int = Field(description="grows with every change")
    pictures: int
    newest: float | None = Field(description="when the last one was added, in seconds since 1970")
    bits: int = Field(description="of a code")
    folders: list[str]
    student: dict = Field(description="card of the exported network that hashes queries")
    max_upload: int = Field(description="bytes")
    max_pixels: int
    max_k: int
    problem: str | None = Field(description="why no query can be answered now")


class Pictures(BaseModel):
    pictures: int = Field(description="that folder and dates let through")
    index: str = Field(description="a name that no other index has")
    generation: int = Field(description="of the index: grows with every change")
    results: list[Picture] = Field(description="those taken last first")


class Copy(Picture):
    kind: str = Field(description="same bytes as the one to keep, which is the first, or near copy")


class Failure(BaseModel):
    error: str = Field(description="what is wrong, and what to do")


def count_pixels(content: bytes, name: str) -> int:
    """Pixels of an upload, before any is decoded.

    Raises:
        HTTPException: it has too many, or is no picture of the formats that are named.
    """
    with opened(content) as image:
        width, height = image.size
    if width * height > MAX_PIXELS:
        raise HTTPException(413, f"{name}: more than {MAX_PIXELS // 10**6} megapixels; make it smaller")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise HTTPException(413, f"{name}: {width} x {height} is a strip; cut a part of it")
    return width * height


def readable(function: Callable, content: bytes, name: str) -> Any:
    """What ``function`` makes of an upload.

    Raises:
        HTTPException: no picture of the formats that are named, a damaged one, or one too large.
    """
    try:
        return function(content, name)
    except HTTPException:
        raise
    except UserError as error:
        raise HTTPException(415, str(error)) from None
    except Exception as error:  # a damaged file makes Pillow raise nearly anything
        formats = ", ".join(FORMATS)
        what = "" if isinstance(error, UnidentifiedImageError) else f" ({first_line(error)})"
        raise HTTPException(415, f"{name}: not a readable image of {formats}{what}") from None


def check_original(record: Record) -> str:
    """The media type of an indexed file, if it is still the one that was indexed.

    Raises:
        HTTPException: it is gone, or another one.
    """
    again = "`python -m search add` of its folder mends the index"
    try:  # what has taken its name may be a pipe, which would never end
        with open(os.open(record.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            facts = os.fstat(file.fileno())
            same = stat.S_ISREG(facts.st_mode) and facts.st_size == record.size
            if same and time_of(facts) != record.mtime_ns:  # touched, or another one
                same = hashlib.file_digest(file, "sha256").hexdigest() == record.digest
                file.seek(0)
            kind = format_of(file.read(HEAD)) if same else None
    except OSError as error:
        raise HTTPException(410, f"{record.path}: can't be opened ({error.strerror}); {again}") from None
    if not kind:
        raise HTTPException(409, f"{record.path}: changed since it was indexed; {again}")
    return "image/heic" if kind == "HEIF" else f"image/{kind.lower()}"


def preview_of(record: Record) -> bytes:
    """A JPEG of an indexed file.

    Raises:
        HTTPException: as ``check_original``; or the file has too many pixels.
    """
    check_original(record)
    content = Path(record.path).read_bytes()
    readable(count_pixels, content, record.path)
    return thumbnail_of(pixels_of(BytesIO(content), record.path, upright=True), PREVIEW)


class Searcher:
    """An index and the student that asks it."""

    def __init__(self, index: Index, student: Exported):
        self.index, self.student = index, student
        self.known: tuple[object, dict] = None, {}
        self.groups: tuple[object, list] = None, []
        self.comparing = threading.Lock()

    def problem(self) -> str | None:
        """Why no query can be answered now."""
        if not len(self.index) or not (card := self.index.card):
            return "the index is empty; add pictures: python -m search add --index INDEX --student STUDENT FOLDER"
        try:
            may_ask(self.student.card, card)
        except UserError as error:
            return str(error)
        return None

    def record(self, id: str) -> Record:
        try:
            return self.index.find(id)
        except KeyError:
            raise HTTPException(404, f"the index has no picture {id}; it may have been removed") from None

    def search(self, query: tuple, look: np.ndarray | None, k: int, radius: int | None, where: Filters) -> dict:
        """The answer to (name, code uint8 [w], milliseconds of its hashing)."""
        if problem := self.problem():
            raise HTTPException(409, problem)
        answer = answers(self.index, [query], k, radius, where, looks=[look])[0]
        check_folder(where, answer["searched"])
        return answer

    def pictures(self, where: Filters, start: int, n: int) -> dict:
        with self.index.at_one_moment():
            count, records = self.index.newest_first(where, start, n)
            state = {"index": self.index.identity, "generation": self.index.generation}
        check_folder(where, count)
        return {"pictures": count, **state, "results": [facts(record) for record in records]}

    def copies(self) -> list[dict]:
        """Groups of copies, computed once a state of the index."""
        with self.comparing:
            if self.groups[0] != (state := self.state()) or not self.index.generation:
                groups = duplicates(self.index)[:MAX_GROUPS]
                self.groups = (state, [[facts(one) | {"kind": g.kind(one)} for one in g.pictures] for g in groups])
            return self.groups[1]

    def state(self) -> tuple:
        return self.index.identity, self.index.generation, self.index.opened

    def info(self) -> dict:
        """Computed once a state of the index, where it has a generation."""
        state = self.state()
        if self.known[0] != state or not state[1]:
            self.known = state, self._info()
        return self.known[1]

    def _info(self) -> dict:
        problem = self.problem()
        return {
            "index": self.index.identity,
            "generation": self.index.generation,
            "pictures": len(self.index),
            "newest": self.index.newest,
            "bits": self.student.bits,
            "folders": self.index.folders(),
            "student": self.student.card,
            "max_upload": MAX_UPLOAD,
            "max_pixels": MAX_PIXELS,
            "max_k": MAX_K,
            "problem": problem,
        }


def named(record: Record) -> dict[str, str]:
    return {"ETag": f'"{record.digest}"', "Cache-Control": "private, no-cache"}


def unchanged(record: Record, request: Request) -> Response | None:
    """The answer to a browser that has this picture."""
    headers = named(record)
    return (
        Response(status_code=304, headers=headers) if request.headers.get("if-none-match") == headers["ETag"] else None
    )


def filters(folder: str | None, after: date | None, before: date | None) -> Filters:
    first, end = (None if day is None else calendar.timegm(day.timetuple()) for day in (after, before))
    return Filters(folder or None, None, first, end)


def check_folder(where: Filters, pictures: int) -> None:
    """Raises HTTPException for a folder that no picture lies in."""
    if not pictures and where.folder and where == Filters(where.folder):
        raise HTTPException(404, f"{where.folder}: no picture of this index lies there")


Id = Annotated[str, InPath(max_length=64)]
FOLDER = {"max_length": 4096, "description": "only pictures below it"}
AFTER, BEFORE = {"description": "only those taken on that day or later"}, {"description": "only those taken earlier"}


def make_app(index: Index, student: Exported, allowed: Collection[str] = ()) -> Guard:
    """The ASGI application: page, API and pictures.

    Args:
        allowed: names, beside addresses and localhost, by which the server may be asked.
    """
    MultiPartParser.spool_max_size = 2 * MAX_UPLOAD  # uploads stay in memory: a query writes nothing
    searcher = Searcher(index, student)
    cores = os.cpu_count() or 1
    hashing = ThreadPoolExecutor(cores, "hashing")
    large = ThreadPoolExecutor(1, "large")  # one at a time, since each takes a gigabyte; small ones pass by
    previews = ThreadPoolExecutor(1, "previews")  # as dear, and no query waits for them
    # Each search on one core: several at once share the cores, and none waits for a core that hashes.
    searching = ThreadPoolExecutor(cores, "searching", faiss.omp_set_num_threads, (1,))
    files = {file.name: file.read_bytes() for file in PAGE.iterdir() if file.suffix in TYPES}
    app = FastAPI(
        title="Search by picture",
        description="Pictures that are near a picture, by the Hamming distance of their codes.",
        version="1",
        docs_url=None,
        redoc_url=None,
        max_body_size=MAX_BODY,  # of a request that does not say its length, too
        form_limits={"max_files": 1, "max_fields": 8, "max_part_size": 2**14},
        responses={"4XX": {"model": Failure}, "5XX": {"model": Failure}},
    )

    async def on(pool: ThreadPoolExecutor, function: Callable, *args: object) -> Any:
        """What takes long has threads of its own, so that thumbnails don't wait for it."""
        return await asyncio.get_running_loop().run_in_executor(pool, function, *args)

    @app.exception_handler(AnyHTTPException)
    async def refused(_: Request, error: AnyHTTPException) -> Response:
        reason = TOO_LARGE if error.detail == "Content Too Large" else error.detail
        return failure(error.status_code, reason, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        reasons = (f"{'.'.join(map(str, e['loc'][1:])) or 'request'}: {e['msg']}" for e in error.errors())
        return failure(422, "; ".join(reasons))

    @app.exception_handler(UserError)
    async def unusable(_: Request, error: UserError) -> Response:  # an index is damaged, or another process holds it
        return failure(503, str(error))

    @app.exception_handler(KeyError)
    async def removed(_: Request, error: KeyError) -> Response:
        return failure(404, f"the index has no picture {error}; it has been removed")

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return failure(500, f"the server failed ({type(error).__name__}); its log says how")

    def by_file(content: bytes, name: str) -> tuple[tuple, np.ndarray | None]:
        return hashed(student, BytesIO(content), name)

    def by_id(id: str) -> tuple[tuple, np.ndarray | None]:
        with index.at_one_moment():
            record = searcher.record(id)
            return (record.path, index.code_of(record.id), 0.0), look_of(index, record.id)

    @app.post("/api/search", responses={200: {"model": Answer}})
    async def search(
        file: Annotated[UploadFile | None, File(description="the picture to search by; or give id")] = None,
        id: Annotated[str | None, Form(max_length=64, description="of an indexed picture")] = None,
        k: Annotated[int, Form(ge=1, le=MAX_K, description="how many of the nearest")] = 100,
        radius: Annotated[int | None, Form(ge=0, le=2**16, description="none that is farther")] = None,
        folder: Annotated[str | None, Form(**FOLDER)] = None,
        after: Annotated[date | None, Form(**AFTER)] = None,
        before: Annotated[date | None, Form(**BEFORE)] = None,
    ) -> Ascii:
        """The pictures nearest to one that is sent, or to one of the index, ties in the order added."""
        if (file is None) == (id is None):
            raise HTTPException(422, "send a picture as file, or the id of an indexed one: one of the two")
        if file is None:
            query = await to_thread(by_id, id or "")
        else:
            name = (file.filename or "picture")[:200]
            content = await file.read()
            if not content:
                raise HTTPException(415, f"{name}: it is empty")
            if len(content) > MAX_UPLOAD:
                raise HTTPException(413, f"{name}: {TOO_LARGE}")
            pixels = await on(hashing, readable, count_pixels, content, name)
            query = await on(large if pixels > LARGE else hashing, readable, by_file, content, name)
        return Ascii(await on(searching, searcher.search, *query, k, radius, filters(folder, after, before)))

    @app.get("/api/pictures", responses={200: {"model": Pictures}})
    async def pictures(
        folder: Annotated[str | None, Query(**FOLDER)] = None,
        after: Annotated[date | None, Query(**AFTER)] = None,
        before: Annotated[date | None, Query(**BEFORE)] = None,
        start: Annotated[int, Query(ge=0, le=2**31, description="how many of them are passed over")] = 0,
        n: Annotated[int, Query(ge=1, le=MAX_K, description="how many are listed")] = 60,
    ) -> Ascii:
        """All pictures, page by page, those taken last first."""
        return Ascii(await on(searching, searcher.pictures, filters(folder, after, before), start, n))

    @app.get("/api/info", responses={200: {"model": Info}})
    async def info() -> Ascii:
        """What is searched, by which network, and what a query may be."""
        return Ascii(await on(searching, searcher.info))

    @app.get("/api/duplicates", responses={200: {"model": list[list[Copy]]}})
    async def copies() -> Ascii:
        """Pictures that are there more than once."""
        return Ascii(await on(large, searcher.copies))

    @app.get("/thumbnail/{id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def thumbnail(id: Id, request: Request) -> Response:
        """A small JPEG of an indexed picture, kept in the index."""
        record = await to_thread(searcher.record, id)  # asked for anew each time: it may have been removed
        if known := unchanged(record, request):
            return known
        if not (jpeg := await to_thread(index.thumbnail, record.id)):
            raise HTTPException(404, "it has no thumbnail")
        return Response(jpeg, media_type="image/jpeg", headers=named(record))

    @app.get("/preview/{id}", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
    async def preview(id: Id, request: Request) -> Response:
        """A JPEG of at most 1,600 pixels, of a file that browsers can't show."""
        record = await to_thread(searcher.record, id)
        if known := unchanged(record, request):
            return known
        try:
            async with asyncio.timeout(SECONDS):
                jpeg = await on(previews, preview_of, record)
        except TimeoutError:
            raise HTTPException(503, "busy with other previews; try again later") from None
        return Response(jpeg, media_type="image/jpeg", headers=named(record))

    @app.get("/original/{id}", response_class=Response, responses={200: {"content": {"image/*": {}}}})
    async def original(id: Id) -> Response:
        """The file itself, if it is still the one that was indexed."""
        record = await to_thread(searcher.record, id)
        kind = await to_thread(check_original, record)
        how = {"Cache-Control": "private, no-cache", **ORIGINAL}
        return FileResponse(record.path, media_type=kind, headers=how)  # in pieces, also from where a client left off

    def page(name: str) -> Response:
        if name not in files:
            raise HTTPException(404, "there is no such page")
        return Response(files[name], media_type=TYPES[Path(name).suffix], headers={"Cache-Control": "no-cache"})

    app.get("/", include_in_schema=False)(lambda: page("index.html"))
    app.get("/docs", include_in_schema=False)(lambda: page("docs.html"))
    app.get("/page/{name}", include_in_schema=False)(page)
    return Guard(app, allowed)


def listen(host: str, port: int) -> socket.socket:
    """Raises UserError where nothing can listen there."""
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)  # asyncio turns off the delay of small packets if it is told TCP
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(128)
        return sock
    except OSError as error:
        if sock:
            sock.close()
        raise UserError(f"--host {host} --port {port}: {error.strerror}; choose another") from None


def serve(index: Index, student: Exported, host: str, port: int, allowed: Collection[str] = ()) -> None:
    """Serve the page until Ctrl-C.

    Raises:
        UserError: the address is taken.
    """
    warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, by whoever sends it
    names = {socket.gethostname(), socket.getfqdn(), host} if not is_loopback(host) else set()
    app = make_app(index, student, names | set(allowed))
    sock = listen(host, port)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        limit_concurrency=1000,  # connections
        timeout_graceful_shutdown=5,
    )
    shown = f"[{host}]" if ":" in host else host
    print(f"{many(len(index), 'picture')} on http://{shown}:{sock.getsockname()[1]} (Ctrl-C ends)", flush=True)
    if not is_loopback(host):
        print("note: everybody who reaches this machine can search, and open every picture of the index", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[sock])
    except KeyboardInterrupt:
        print("\nstopped", flush=True)


def is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
