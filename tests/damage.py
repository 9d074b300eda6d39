"""Damage to files, as Hypothesis draws it, and a judge of what their readers make of it.

A damaged file may give the right value, another one that a careful user could have meant, or a ``UserError`` of one
line that names the file. All else is a finding: another error, a hang, nonsense taken for data.
"""

import contextlib
import io
import json
import re
import signal
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path

import hypothesis
import numpy as np
import torch
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from utils.errors import UserError, first_line

SECONDS = 10  # longer than this, and a reader hangs
SHOWN = (UserWarning, RuntimeWarning, FutureWarning, SyntaxWarning)  # Python keeps the others to itself
ONCE = settings(phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))

KINDS = ("flip", "flip", "cut", "drop", "insert", "zeros", "repeat", "splice", "word", "word")
# Heads and ends of files hold what their readers trust most, so they are hit as often as all the rest.
PLACES = st.one_of(st.integers(0, 2**20), st.integers(0, 2**20).map(lambda place: place % 128 - 64))
LENGTHS = st.one_of(st.integers(1, 16), st.integers(1, 5000))
# What may stand in a text where a number, a name or a list is awaited; what somebody may put in a file's place by
# mistake; what may stand in a well-formed file in a value's place.
WORDS = [
    *(b"", b" ", b"null", b"NaN", b".nan", b"Infinity", b"-1", b"0", b"1", b"0.5", b"1e999", b"1000000000", b"&a"),
    *(b"[]", b"[1]", b"{}", b'"x"', b"x", b"true", b"yes", b"\x00", b"\r\n", b"\n", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"../x", b"/etc/passwd", b"!!python/name:os.system", b"*a", b"9" * 5000, "²".encode(), "\u2028".encode()),
]
FOREIGN = [b"", bytes(4096), b"<html>404</html>\n", b"{}\n", b"[]\n", b"a: 1\n", b"\x80\x02}q\x00.", b"PAR1PAR1"]
FOREIGN += [b"PK\x05\x06" + bytes(18), b"\x89PNG\r\n\x1a\n", b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}"]
ODD = (None, True, 7, -1, 0.5, float("nan"), "x", "²", [], {"x": 1})


def blow(data: bytes, kind: str, place: int, length: int, more: bytes) -> bytes:
    """What a disk, a cable, a merge or an editor does to a file; ``more``: what is new in it."""
    place %= len(data) + 1
    if kind == "word" and (token := re.search(rb"[^\s,:\[\]{}]+", data[place:])):
        place, length = place + token.start(), len(token[0])
    head, hit, tail = data[:place], data[place : place + length], data[place + length :]
    return {
        "flip": head + bytes(byte ^ 1 << length % 8 for byte in hit[:1]) + hit[1:] + tail,
        "cut": head,
        "drop": head + tail,
        "insert": head + more + hit + tail,
        "zeros": head + bytes(len(hit)) + tail,  # they never reached the disk
        "repeat": head + hit + hit + tail,
        "splice": head + more,
        "word": head + more + tail,
    }[kind]


def damages(other: bytes, fitting: list[bytes]) -> st.SearchStrategy[list[tuple]]:
    """Arguments of one or several blows; ``other``: a valid file to splice with, ``fitting``: what may replace all."""
    tails = PLACES.map(lambda place: other[place % (len(other) + 1) :])
    more = st.one_of(st.sampled_from(WORDS), st.binary(max_size=40), tails)
    blows = st.tuples(st.sampled_from(KINDS), PLACES, LENGTHS, more)
    whole = st.tuples(st.just("splice"), st.just(0), st.just(0), st.sampled_from([*FOREIGN, *fitting]))
    return st.one_of(*(st.lists(one, min_size=1, max_size=n) for one, n in ((blows, 1), (blows, 3), (whole, 1))))


# By a file's ending: how its values, a dict, are read and written.
FORMATS = {
    ".json": (json.load, lambda content, file: file.write(json.dumps(content).encode())),
    ".yaml": (yaml.safe_load, lambda content, file: yaml.safe_dump(content, file, encoding="utf-8")),
    ".pt": (lambda file: torch.load(file, weights_only=True), torch.save),
    ".npz": (lambda file: dict(np.load(file, allow_pickle=False)), lambda content, file: np.savez(file, **content)),
}


def changed(content: dict) -> Iterator[dict]:
    """The same with one value, at any depth, that is missing or another."""
    for key, value in content.items():
        odd = [*ODD, *(changed(value) if isinstance(value, dict) else ())]
        if isinstance(value, np.ndarray | torch.Tensor):
            odd += [value * float("nan"), value + 50, value[None], value.reshape(-1)[:1]]
        yield {k: v for k, v in content.items() if k != key}
        yield from ({**content, key: one} for one in odd)


def edits_of(file: Path) -> Iterator[bytes]:
    """Well-formed files of wrong contents: their checksums fit."""
    load, save = FORMATS.get(file.suffix, (lambda _: {}, None))
    for content in changed(load(io.BytesIO(file.read_bytes()))):
        save(content, edited := io.BytesIO())
        yield edited.getvalue()


def canonical(value: object) -> object:
    """Plain nested tuples that are equal where two values are the same, to the bit."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return str(value.dtype), value.shape, value.tobytes()
    if isinstance(value, dict):
        return tuple((str(key), canonical(one)) for key, one in sorted(value.items(), key=lambda item: str(item[0])))
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(map(canonical, value))
    return type(value).__name__, str(value)


@dataclass(frozen=True)
class Reader:
    """One way in.

    Attributes:
        file: what is damaged; with 0 for its {} a valid file, with 1 another of the same kind.
        read: file -> value; asserts what holds of every value that could have been meant. A format without checksums
            can't tell a changed digit from a meant one, but it can tell nonsense.
        exact: checksums hold for all of it, so that no damage may give another value.
    """

    file: str
    read: Callable[[Path], object]
    exact: bool = False


def ring(number, frame):
    raise SystemExit(f"still at work after {SECONDS} s")  # no reader catches it


def judge(reader: Reader, file: Path, right: object) -> tuple[str, object, str]:
    """("right", "changed" or "refused", the value, what is wrong with that, if anything)."""
    verdict, value, wrong, nowhere = "", None, "", io.StringIO()
    signal.signal(signal.SIGALRM, ring)
    with warnings.catch_warnings(record=True) as said:
        try:
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
                value = reader.read(file)
            verdict = "right" if canonical(value) == right else "changed"
        except UserError as error:
            verdict, message = "refused", str(error)
            if str(file.parent) not in message or file.name not in message or len(message.splitlines()) != 1:
                wrong = f"not one line that names the file: {message!r}"
        except (Exception, SystemExit) as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            wrong = f"{type(error).__name__} in {Path(at.filename).name}, {at.name}: {first_line(error)}"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return verdict, value, wrong or next((f"a warning: {w.message}" for w in said if issubclass(w.category, SHOWN)), "")


def look(reader: Reader, folder: Path, inputs: int, seed: int) -> tuple[Counter, list[tuple[str, str, bytes]]]:
    """Damage a file in ``folder`` so many times: how often what came of it; each finding, by which blows, the bytes."""
    file, other = (next(folder.glob(reader.file.format(number))) for number in range(2))
    beside = {path: path.read_bytes() for path in file.parent.iterdir() if path.is_file()}
    fitting, right = [other.read_bytes(), *edits_of(file)], canonical(reader.read(file))
    tally, found = Counter(), []

    def put(data: bytes) -> None:
        for path in filter(Path.is_file, file.parent.iterdir()):
            path.unlink()
        for path, content in (beside | {file: data}).items():
            path.write_bytes(content)

    put(fitting[0])
    swapped = canonical(judge(reader, file, right)[1])  # damage may be a part of the other file, checksum and all

    @hypothesis.seed(seed)
    @settings(ONCE, max_examples=inputs)
    @given(damages(fitting[0], fitting))
    def one(blows: list[tuple]) -> None:
        put(data := reduce(lambda data, more: blow(data, *more), blows, beside[file]))
        verdict, value, wrong = judge(reader, file, right)
        if reader.exact and verdict == "changed" and data not in fitting and canonical(value) != swapped:
            wrong = "another value in silence, where a checksum could tell"
        tally.update(["inputs", "finding" if wrong else verdict])
        if wrong:
            found.append((wrong, "; ".join(f"{kind} {place} {n} {new[:20]!r}" for kind, place, n, new in blows), data))

    one()
    put(beside[file])
    return tally, found
