"""Very many pictures in parts, wherever they lie: folders, lists, Parquet, WebDataset shards, local or by URL (fsspec).

A part is what one worker reads at a time: some files, one shard, or some row groups of a Parquet file. Nothing here
needs PyTorch.
"""

import contextlib
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from data.tree import ends_here, images_below, is_image
from utils.errors import UserError, first_line, some
from utils.files import lines_of

TABLES = (".parquet", ".csv")
WHERE = ("url", "path")  # columns that may say where a picture lies
LABELS = re.compile(r"(\s+[01])+$")  # behind the path, in lists that carry labels

Picture = tuple[str, bytes | UserError | None]  # its name; its content, what is wrong with it, or None: read it


@dataclass(frozen=True)
class Part:
    """What one worker reads at a time.

    Attributes:
        kind: "files" (``paths``), "shard" (``file``) or "rows" (``column`` of ``file``'s row groups first..last).
    """

    kind: str
    file: str = ""
    column: str = ""
    first: int = 0
    last: int = 0
    paths: tuple[str, ...] = ()


def is_url(name: str) -> bool:
    return "://" in name and not name.startswith("/")


def place(name: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, and the path in it.

    Raises:
        UserError: no such protocol, or what it needs is not installed.
    """
    try:
        return fsspec.core.url_to_fs(name if is_url(name) else os.path.abspath(name))
    except (ImportError, ValueError) as error:
        raise UserError(f"{name}: can't be read ({first_line(error)})") from None


def read(name: str) -> bytes:
    """The content of a file, or of what a URL names.

    Raises:
        UserError: it is not there or can't be read; each protocol has errors of its own.
    """
    files, path = place(name)
    try:
        return files.cat_file(path)
    except FileNotFoundError:
        raise UserError(f"{name}: no such file") from None
    except Exception as error:
        raise UserError(f"{name}: can't be read ({first_line(error)})") from None


def read_in_arrow(name: str) -> pa.BufferReader:
    """The same in memory of Arrow's own.

    Arrow's threads let go of what they read after the reading has returned; if that is memory of Python's and the
    interpreter has ended meanwhile, the process aborts.
    """
    copy = pa.BufferOutputStream()
    copy.write(read(name))
    return pa.BufferReader(copy.getvalue())


def parts_of(source: str, size: int, column: str | None = None) -> Iterator[Part]:
    """A source in parts of about ``size`` pictures; a shard is one part, however large.

    Args:
        source: a folder, a list (.txt, .csv), a .parquet or .tar file, or a pattern of them such as
            ``s3://bucket/shards/*.tar``; a path or a URL.
        column: of Parquet and CSV files: where the pictures or their addresses are.

    Raises:
        UserError: nothing is there, or it is not clear what the pictures are.
    """
    files, path = place(source)
    try:
        if "*" in path and not files.exists(path):
            found = [_name(files, p) for p in sorted(files.glob(path)) if not _hidden(p)]
        else:
            found = _in_folder(files, path, source) if files.isdir(path) else [_name(files, path)]
            if not files.exists(path):
                raise UserError(f"{source}: no such file or folder")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{source}: can't be listed ({first_line(error)})") from None
    if not found:
        raise UserError(f"{source}: holds no pictures, shards (.tar) or tables (.parquet)")
    pictures = [name for name in found if is_image(name)]
    for name in found:
        if name.endswith(".tar"):
            yield Part("shard", name)
        elif name.endswith((*TABLES, ".txt")):
            yield from _of_list(name, size, column)
        elif not is_image(name):
            raise UserError(f"{name}: no folder, list (.txt, .csv), table (.parquet), shard (.tar) or picture")
    yield from _of_files(pictures, size)


def _name(files: fsspec.AbstractFileSystem, path: str) -> str:
    """A local file's path, else its URL."""
    return path if "file" in files.protocol else files.unstrip_protocol(path)


def _hidden(path: str) -> bool:
    return os.path.basename(path.rstrip("/")).startswith(".")


def _in_folder(files: fsspec.AbstractFileSystem, path: str, source: str) -> list[str]:
    """The shards or the tables that lie in a folder; where there are none the pictures below it."""
    inside = sorted(p for p in files.ls(path, detail=False) if not _hidden(p))
    kinds = {kind: [p for p in inside if p.endswith(kind)] for kind in (".tar", ".parquet")}
    pictures = [p for p in inside if is_image(p)]
    there = [f"{kind} files" for kind, found in kinds.items() if found] + ["pictures"] * bool(pictures)
    if len(there) > 1:
        raise UserError(f"{source}: holds {' and '.join(there)}; name what is meant, such as {source}/*.tar")
    if found := kinds[".tar"] or kinds[".parquet"]:
        return [_name(files, p) for p in found]
    if "file" in files.protocol:
        below = images_below([path])
        for note in below.notes():
            print(f"{source}: {note}")
        return below.paths
    named = (p for p in sorted(files.find(path)) if is_image(p))
    return [_name(files, p) for p in named if "/." not in p.removeprefix(path)]


def _of_files(names: Iterable[str], size: int) -> Iterator[Part]:
    names = tuple(names)
    for first in range(0, len(names), size):
        yield Part("files", paths=names[first : first + size])


def _of_list(file: str, size: int, column: str | None) -> Iterator[Part]:
    if file.endswith(".parquet"):
        yield from _of_table(file, size, column)
    elif file.endswith(".csv"):
        yield from _of_files(_addresses(file, _csv(file), column or _column(file, _csv(file).schema, WHERE)), size)
    else:
        paths = [LABELS.sub("", line.strip()) for line in lines_of(read(file), file) if line.strip()]
        if not paths:
            raise UserError(f"{file}: empty list")
        yield from _of_files((_beside(file, path) for path in paths), size)


def _csv(file: str) -> pa.Table:
    from pyarrow import csv  # seldom needed

    try:
        return csv.read_csv(read_in_arrow(file))
    except pa.ArrowException as error:
        raise UserError(f"{file}: not a readable table ({first_line(error)})") from None


def _beside(file: str, name: str) -> str:
    """What a list names: a URL, an absolute path, or a path from the list's folder; paths as `search add` has them."""
    name = name.removeprefix("file://")
    if not is_url(name) and not name.startswith("/"):
        name = f"{file.rpartition('/')[0]}/{name}"
    return name if is_url(name) else os.path.abspath(name)


def _check_column(file: str, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{file}: no column '{column}'; there are: {some(schema.names)}")


def _addresses(file: str, table: pa.Table, column: str) -> list[str]:
    _check_column(file, table.schema, column)
    values = table[column]
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise UserError(f"{file}: its column '{column}' holds {values.type}, not text")
    if values.null_count:
        raise UserError(f"{file}: {values.null_count} rows of its column '{column}' are empty")
    try:
        return [_beside(file, name) for name in values.to_pylist()]
    except UnicodeDecodeError:
        raise UserError(f"{file}: its column '{column}' is not UTF-8") from None


def _column(file: str, schema: pa.Schema, allowed: Iterable[str]) -> str:
    there = [name for name in allowed if name in schema.names]
    if not there:
        raise UserError(f"{file}: which column has the pictures? Say --column; there are: {some(schema.names)}")
    return there[0]


def _is_bytes(kind: pa.DataType) -> bool:
    """Bytes, or bytes with their name beside, as data sets of Hugging Face have them."""
    inner = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    return pa.types.is_binary(inner) or pa.types.is_large_binary(inner)


def _of_table(file: str, size: int, column: str | None) -> Iterator[Part]:
    """Row groups of a Parquet file with bytes, or the files that a column names."""
    with _parquet(file) as table:
        schema, held = table.schema_arrow, table.metadata
        holds = [field.name for field in schema if _is_bytes(field.type)]
        if column is None:
            column = holds[0] if len(holds) == 1 else _column(file, schema, WHERE)
        if column not in holds:
            _check_column(file, schema, column)
            yield from _of_files(_addresses(file, table.read([column], use_threads=False), column), size)
            return
        first, rows = 0, 0
        for group in range(held.num_row_groups):
            rows += held.row_group(group).num_rows
            if rows >= size or group == held.num_row_groups - 1:
                yield Part("rows", file, column, first, group)
                first, rows = group + 1, 0


@contextlib.contextmanager
def _parquet(file: str) -> Iterator[pq.ParquetFile]:
    """An open file; what can't be read of it, also later, is a UserError."""
    files, path = place(file)
    try:
        with pq.ParquetFile(files.open(path, "rb")) as table:
            yield table
    except UserError:
        raise
    except Exception as error:  # each protocol has errors of its own
        raise UserError(
            f"{file}: not a readable Parquet file, or damaged ({first_line(error)}); write or copy it again"
        ) from None


def pictures(part: Part) -> Iterator[Picture]:
    """What a part holds, in its order; what can't be read is told in its place, and the rest goes on."""
    if part.kind == "files":
        return ((name, None) for name in part.paths)
    return _in_shard(part.file) if part.kind == "shard" else _in_rows(part)


def _in_rows(part: Part) -> Iterator[Picture]:
    """Named FILE/ROW, or by a column ``path`` where there is one."""
    try:
        with _parquet(part.file) as table:
            row = sum(table.metadata.row_group(group).num_rows for group in range(part.first))
            named = "path" in table.schema_arrow.names and part.column != "path"
            for group in range(part.first, part.last + 1):
                rows = table.read_row_group(group, [part.column] + ["path"] * named, use_threads=False)
                cells = rows[part.column]
                if pa.types.is_struct(cells.type):
                    cells = pc.struct_field(cells, "bytes")
                names = map(_text, rows["path"]) if named else [None] * len(cells)
                for content, name in zip(cells.to_pylist(), names, strict=True):
                    name = _beside(part.file, name) if name else f"{part.file}/{row}"
                    yield name, UserError(f"{name}: no bytes in its row") if content is None else content
                    row += 1
    except UserError as error:
        yield part.file, error


def _text(value: pa.Scalar) -> str | None:
    """As Python has file names: of any bytes."""
    try:
        return None if (text := value.as_py()) is None else str(text)
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "surrogateescape")


def _in_shard(shard: str) -> Iterator[Picture]:
    """Named SHARD/MEMBER; hidden members and what is no picture are passed over."""
    seen: set[str] = set()
    try:
        files, path = place(shard)
        with files.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps all heads
                inside = posixpath.normpath(f"/./{member.name}")  # `tar -C FOLDER .` calls them ./NAME
                if member.isdir() or not is_image(inside) or "/." in inside:
                    continue
                name = f"{shard}{inside}"
                if name in seen:
                    yield name, UserError(f"{name}: its name comes twice in the shard")
                elif not member.isfile() or not (inner := tar.extractfile(member)):
                    yield name, UserError(f"{name}: a link, or no file; write it by tar -h --hard-dereference")
                else:
                    yield name, inner.read()
                seen.add(name)
            if not ends_here(file, tar.offset):
                yield shard, UserError(f"{shard}: cut or damaged; write or copy it again")
            elif not seen:
                yield shard, UserError(f"{shard}: holds no picture")
    except UserError as error:
        yield shard, error
    except Exception as error:  # each protocol has errors of its own
        yield shard, UserError(f"{shard}: cut or no uncompressed tar file ({first_line(error)}); write it again")
