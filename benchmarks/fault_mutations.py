"""Random damage to a file's bytes, as hypothesis strategies: what a disk, a cable, a merge or an editor does to it."""

import re

from hypothesis import strategies as st

# Heads and ends of files hold what their readers trust most, so they are hit as often as all the rest.
PLACES = st.one_of(st.integers(0, 63), st.integers(-64, -1), st.integers(0, 2**20))
LENGTHS = st.one_of(st.integers(1, 16), st.integers(1, 5000))
# What may stand in a text file where a number, a name or a list is awaited.
WORDS = [
    *(b"", b" ", b"null", b"NaN", b".nan", b"Infinity", b"-1", b"0", b"1", b"0.5", b"1e999", b"1000000000"),
    *(b"[]", b"[1]", b"{}", b'"x"', b"x", b"true", b"yes", b"\x00", b"\r\n", b"\n", b"\xff\xfe", b"\xef\xbb\xbf"),
    *(b"../x", b"/etc/passwd", b"!!python/name:os.system", b"&a", b"*a", b"9" * 5000, "²".encode(), "\u2028".encode()),
]
TOKEN = re.compile(rb"[^\s,:\[\]{}]+")


def flip(data: bytes, place: int, bit: int) -> bytes:
    if not data:
        return data
    place %= len(data)
    return data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]


def cut(data: bytes, place: int) -> bytes:
    return data[: place % (len(data) + 1)]


def drop(data: bytes, place: int, length: int) -> bytes:
    place %= len(data) + 1
    return data[:place] + data[place + length :]


def insert(data: bytes, place: int, more: bytes) -> bytes:
    place %= len(data) + 1
    return data[:place] + more + data[place:]


def zeros(data: bytes, place: int, length: int) -> bytes:
    """A block that never reached the disk."""
    place %= len(data) + 1
    return data[:place] + bytes(len(data[place : place + length])) + data[place + length :]


def repeat(data: bytes, place: int, length: int) -> bytes:
    place %= len(data) + 1
    return data[: place + length] + data[place:]


def splice(data: bytes, other: bytes, place: int, there: int) -> bytes:
    """The head of one file and the tail of another."""
    return data[: place % (len(data) + 1)] + other[there % (len(other) + 1) :]


def word(data: bytes, number: int, new: bytes) -> bytes:
    """One word of a text file replaced."""
    tokens = list(TOKEN.finditer(data))
    if not tokens:
        return new
    start, end = tokens[number % len(tokens)].span()
    return data[:start] + new + data[end:]


def replace(data: bytes, other: bytes) -> bytes:
    return other


def edit(data: bytes, number: int, other: bytes) -> bytes:
    """A well-formed file of wrong contents in this one's place."""
    return other


def mutations(own: list[bytes], foreign: list[bytes], edits: list[bytes], text: bool) -> st.SearchStrategy[list[tuple]]:
    """Lists of (function, arguments after the bytes), to be applied in turn.

    Args:
        own: valid files of the same kind, to splice with.
        foreign: the contents of other kinds of files.
        edits: well-formed files of wrong contents.
        text: words are replaced as well.
    """
    blows = [
        st.tuples(st.just(flip), PLACES, st.integers(0, 7)),
        st.tuples(st.just(cut), PLACES),
        st.tuples(st.just(drop), PLACES, LENGTHS),
        st.tuples(st.just(insert), PLACES, st.binary(min_size=1, max_size=40)),
        st.tuples(st.just(zeros), PLACES, LENGTHS),
        st.tuples(st.just(repeat), PLACES, LENGTHS),
        st.tuples(st.just(splice), st.sampled_from(own), PLACES, PLACES),
    ]
    if text:
        blows += [st.tuples(st.just(word), st.integers(0, 500), st.sampled_from(WORDS))] * 3
    once = st.one_of(*blows, st.tuples(st.just(replace), st.sampled_from([b"", *own, *foreign])))
    several = st.lists(st.one_of(blows), min_size=2, max_size=4)
    edited = (
        [st.tuples(st.just(edit), st.integers(0, len(edits) - 1)).map(lambda e: [(*e, edits[e[1]])])] if edits else []
    )
    return st.one_of(once.map(lambda blow: [blow]), several, *edited)


def apply(data: bytes, blows: list[tuple]) -> bytes:
    for function, *arguments in blows:
        data = function(data, *arguments)
    return data


def describe(blows: list[tuple]) -> str:
    """ "flip(12, 3); cut(100)", contents by their beginnings."""

    def short(argument) -> str:
        return (
            f"{argument[:16]!r}…{len(argument)}"
            if isinstance(argument, bytes) and len(argument) > 16
            else repr(argument)
        )

    return "; ".join(f"{function.__name__}({', '.join(map(short, more))})" for function, *more in blows)
