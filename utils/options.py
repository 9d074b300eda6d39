"""Numbers of the command lines that must lie in a range, checked before any work starts."""

import argparse

from utils.errors import UserError

RANGES = {  # lowest allowed, highest allowed
    "bits": (1, 1 << 16),
    "batch_size": (1, None),
    "epochs": (1, None),
    "validate_every": (1, None),
    "patience": (0, None),
    "views": (0, None),
    "rotated_views": (1, None),
    "size": (1, None),
    "student_size": (1, None),
    "workers": (1, None),
    "limit": (2, None),
    "clusters": (1, None),
    "alpha": (0, 1),
    "margin": (0, 1),
    "temperature": (1e-6, None),
    "kl_weight": (0, None),
    "kd_weight": (0, None),
    "lr": (0, None),
    "k": (1, None),
    "pictures": (0, None),
}


def check_ranges(args) -> None:
    """Raises UserError for the first number of ``args`` (a parsed command line) that is out of its range."""
    for name, (low, high) in RANGES.items():
        value = getattr(args, name, None)
        if value is None:
            continue
        # Written so that NaN, which compares false to everything, is refused.
        if not (low <= value and (high is None or value <= high)):
            allowed = f"at least {low}" if high is None else f"from {low} to {high}"
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be {allowed}")


def parse_size(text: str) -> int:
    """ "800M", "5G" or plain bytes."""
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    number, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    try:
        return int(float(number) * unit)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write 800M, 5G or a number of bytes") from None
