"""One way to tell a user what went wrong: one line, no traceback, exit status not 0."""

import errno
import os
import sys
import threading
from collections.abc import Callable


class UserError(Exception):
    """A mistake or a condition that the user can mend; the message says what, where and what to do."""


def guarded(main: Callable[[], None]) -> None:
    """Run a command line's ``main`` and turn the failures a user can mend into one clear line."""

    def hook(failure) -> None:
        # TensorBoard's writing thread meets a full disk as well; the main thread says it once.
        if not issubclass(failure.exc_type, OSError):
            threading.__excepthook__(failure)

    threading.excepthook = hook
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted: everything written so far is whole; --resume goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe has gone (`... | head`): nothing is left to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        reasons = {
            errno.ENOSPC: "no space is left on the disk; free some, or put --run-dir and --cache-dir elsewhere",
            errno.EDQUOT: "the disk quota is used up; free some, or put --run-dir and --cache-dir elsewhere",
            errno.EROFS: "that folder is read-only; choose another --run-dir or --cache-dir",
            errno.EACCES: "permission denied; choose another folder or change its permissions",
        }
        if error.errno is None:
            raise
        where = os.fsdecode(error.filename) if error.filename else "writing a file"
        sys.exit(f"error: {where}: {reasons.get(error.errno, error.strerror)}")
