"""Command lines: every option is checked as it is parsed, before anything is written, and refused in one line."""

import argparse
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

from utils.errors import UserError

T = TypeVar("T")
N = TypeVar("N", int, float)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or isinstance(action.default, bool)
        return action.help if plain else super()._get_help_string(action)


# Marks of options, given where they are declared. One without any names a table's row where it is not at its default.
FREE = "free"  # no result depends on it: a run may be resumed with another value
COLUMN = "column"  # tables have a column for it
NEW_FEATURES = "features"  # it changes which features a student needs


class Group(argparse._ArgumentGroup):
    """A group of options, each of which may have marks."""

    marks: dict[str, set[str]]  # of all its parser's options

    def add_argument(self, *flags: str, marks: Collection[str] = (), **how: Any) -> argparse.Action:
        action = super().add_argument(*flags, **how)
        self.marks[action.dest] = set(marks)
        return action


class Parser(argparse.ArgumentParser):
    """argparse whose refusals are a ``UserError`` of one line and whose --help shows every default."""

    def __init__(self, description: str, **more: Any):
        self.marks: dict[str, set[str]] = {}  # by option
        super().__init__(description=description, formatter_class=_Help, **more)

    def add_argument_group(self, *args: Any, **more: Any) -> Group:
        self._action_groups.append(group := Group(self, *args, **more))
        group.marks = self.marks
        return group

    def error(self, message: str) -> NoReturn:
        raise UserError(message.removeprefix("argument "))

    def check(self, values: dict) -> None:
        """Raises UserError for a value, out of a file, that the command line would not have taken."""
        for action in self._actions:
            value = values.get(action.dest, action.default)
            if isinstance(action.default, bool):
                bad = not isinstance(value, bool)
            elif value is None:
                bad = action.default is not None
            else:
                numeric, words = isinstance(action.type, Number), getattr(action.type, "words", ())
                bad = isinstance(value, bool) or not isinstance(value, int | float if numeric else str | Path)
                bad = bad and value not in words
            try:
                if not bad and value is not None and callable(action.type):
                    action.type(str(value))
            except (argparse.ArgumentTypeError, ValueError):
                bad = True
            if bad:
                raise UserError(f"{action.option_strings[0]} can't be {str(value)[:40]!r}")

    def defaults(self) -> dict:
        """Every option with its default; what is required has None."""
        return {a.dest: a.default for a in self._actions if a.dest != "help"}

    def having(self, *marks: str) -> set[str]:
        """Names of the options with one of the marks."""
        return {name for name, given in self.marks.items() if given & set(marks)}


def notes_of_idle(parser: Parser, args: argparse.Namespace, idle: Iterable[str]) -> Iterator[str]:
    """A note for each option of ``idle``, which do nothing beside the others, that was given a value of its own."""
    for name in idle:
        if getattr(args, name) != parser.get_default(name):
            yield f"--{name.replace('_', '-')} {getattr(args, name)} does nothing with the other options chosen"


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Type of an option that names one of a set."""

    def parse(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"'{text}' is not known; there are: {', '.join(names)}")
        return text

    return parse


class Number(Generic[T]):
    """Type of an option that is a number, or one of ``words``; a decorator of what parses its text."""

    def __init__(self, parse: Callable[[str], T], words: Collection[str] = ()):
        self.parse, self.words = parse, words

    def __call__(self, text: str) -> T:
        return self.parse(text)


def number(kind: type[N], low: float, high: float | None = None) -> Number[N]:
    """Type of an option that is an int or a float from ``low`` to ``high``, both allowed, always finite."""

    def parse(text: str) -> N:
        try:
            value = kind(text)
            # Written so that NaN, which compares false to everything, is refused.
            good = low <= value <= (float("inf") if high is None else high) and value != float("inf")
        except ValueError:
            good = False
        if not good:
            what = "a whole number" if kind is int else "a number"
            allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} {allowed}")
        return value

    return Number(parse)


def whole(low: int, high: int | None = None) -> Number[int]:
    return number(int, low, high)


def real(low: float, high: float | None = None) -> Number[float]:
    return number(float, low, high)


def or_auto(parse: Callable[[str], N]) -> Number[N | str]:
    """Type of an option that is a number, or "auto"."""
    return Number(lambda text: text if text == "auto" else parse(text), words=("auto",))


def named(text: str) -> str:
    """Type of an option that may not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name something, or leave the option out")
    return text


@Number
def view_count(text: str) -> int:
    """0 (new views each epoch), or how many are kept: a pair needs two."""
    value = whole(0)(text)
    if value == 1:
        raise argparse.ArgumentTypeError("1: a pair needs at least 2 views an image; 0 makes new ones each epoch")
    return value


@Number
def parse_size(text: str) -> int:
    """Bytes: "800M", "5G" or a plain number.

    Raises:
        argparse.ArgumentTypeError: no size, a negative or an infinite one.
    """
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        size = int(float(digits) * unit)
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 800M, 5G or a number of bytes")
    return size
