"""One way to tell a user what went wrong: one line, no traceback, exit status not 0."""

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REASONS: dict[int | None, str] = {
    errno.ENOSPC: "no space is left on the disk; free some, or write to another disk",
    errno.EDQUOT: "the disk quota is used up; free some, or write to another disk",
    errno.EROFS: "that folder is read-only; choose another",
    errno.EACCES: "permission denied; choose another folder or change its permissions",
}


class UserError(Exception):
    """A mistake or a condition that the user can mend; the message says what, where and what to do, in one line."""

    def __init__(self, message: str):
        line = printable(" ".join(part.strip() for part in message.splitlines()))
        super().__init__(line if len(line) <= 900 else f"{line[:600]} … {line[-200:]}")


def printable(text: str) -> str:
    """A name or message without what a terminal would obey: each control character as an escape."""
    return "".join(c if c >= " " and not "\x7f" <= c <= "\x9f" else c.encode("unicode_escape").decode() for c in text)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system that name no file get ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


def first_line(error: Exception | str, most: int = 200) -> str:
    """What an error says, short enough for a line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text if len(text) <= most else f"{text[:most]} …"


def some(names: Iterable[object], most: int = 5, between: str = ", ") -> str:
    """The first of many, and how many more: for messages that stay one readable line."""
    words = list(map(str, names))
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return between.join(words[:most]) + more


def many(count: int, what: str) -> str:
    """ "1 picture", "2,000 pictures"."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def told(error: OSError) -> str:
    """Where it was, what it is, and what to do, in a line."""
    where = os.fsdecode(error.filename) if error.filename else "writing a file"
    return f"{where}: {REASONS.get(error.errno, error.strerror)}"


def _say_interrupted() -> int:
    """Ctrl-C: one line, and the exit status that shells expect. A second one can't disturb the end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    said = "interrupted: everything written so far is whole; run it again to go on (training: with --resume)"
    print(f"\n{said}", file=sys.stderr, flush=True)
    return 128 + signal.SIGINT


def guarded(main: Callable[[], None]) -> None:
    """Run a command line's ``main`` and turn the failures a user can mend into one clear line."""

    def hook(failure: threading.ExceptHookArgs) -> None:
        # TensorBoard's writing thread meets a full disk as well; the main thread says it once.
        if not issubclass(failure.exc_type, OSError):
            threading.__excepthook__(failure)

    threading.excepthook = hook
    for stream in (sys.stdout, sys.stderr):  # names of any bytes, terminals of any encoding
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(_say_interrupted())
    except BrokenPipeError:
        # The reader of a pipe has gone (`... | head`): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno is None:
            raise
        sys.exit(f"error: {told(error)}")
