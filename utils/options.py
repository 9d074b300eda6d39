"""Numbers of the command lines that must lie in a range, checked before any work starts."""

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
