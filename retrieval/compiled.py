"""What is compiled: counting bits. Apart, since importing numba takes a while."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numba.extending import intrinsic

# Compiled code is kept beside this file or in the home folder; where neither can be written, it is compiled anew.
_HERE = Path(__file__).parent
CAN_CACHE = any(os.access(place, os.W_OK) for place in (_HERE / "__pycache__", _HERE, os.path.expanduser("~")))


@intrinsic
def popcount(typing: Any, word: Any) -> tuple[Any, Callable]:
    """How many bits of a uint64 are 1: one machine instruction."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return word(word), generate
