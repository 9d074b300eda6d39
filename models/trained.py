"""A run read back from its folder: a teacher, or a student with the teacher that taught it."""

from dataclasses import dataclass
from pathlib import Path
from types import UnionType

from models.backbones import FrozenBackbone, build_backbone, hash_state, set_batch_norm_statistics
from models.heads import HashHead, load_head
from utils.errors import UserError, some
from utils.runs import read_args, read_summary

# What each kind of run selects by, on its validation queries; each keeps its own best checkpoint.
SELECTED_BY = {"teacher": ("map",), "student": ("sshp", "ashp")}


# What must be in a run's args.yaml beside options of data and features (``data.load.input_parser``); the last of all,
# alphabetically, tells a file that was cut.
_COMMON: dict[str, type | UnionType] = {"hashing": str, "seed": int, "size": int, "workers": int}
NEEDED: dict[str, dict[str, type | UnionType]] = {
    "teacher": _COMMON | {"weights": str},
    "student": _COMMON | {"student_weights": str, "student_size": int | None, "method": str, "teacher": str},
}


def best_file(metric: str) -> str:
    return f"best_{metric}.pt"


@dataclass(frozen=True)
class Trained:
    """A run's best heads and what they were trained on.

    Attributes:
        folder: of the run.
        args: the run's own command line, as written.
        heads: by the metric that chose them: "map" of a teacher, "sshp" and "ashp" of a student.
        facts: what their checkpoints say of themselves (backbone, data, BatchNorm statistics).
        teacher: of a student; a teacher has none.
    """

    folder: Path
    args: dict
    heads: dict[str, HashHead]
    facts: dict
    teacher: "Trained | None" = None

    @property
    def bits(self) -> int:
        return self.facts["config"]["bits"]

    @property
    def size(self) -> int:
        """Pixels, height and width of what the backbone sees."""
        return self.args.get("student_size") or self.args["size"]

    def backbone(self) -> FrozenBackbone:
        """The frozen network under the heads.

        Raises:
            UserError: the weights found now are not those that the heads were trained on, by hash.
        """
        known = self.facts["backbone"]
        weights = self.args["weights" if self.teacher is None else "student_weights"]
        backbone = build_backbone(known["name"], weights, known["features"])
        if self.facts.get("batch_norm"):
            set_batch_norm_statistics(backbone, self.facts["batch_norm"])
        if backbone.sha256 != known["sha256"]:
            raise UserError(
                f"the weights of {known['name']} ({weights}) are not those that its head was trained on "
                f"(hash {backbone.sha256[:12]}, then {known['sha256'][:12]}); pass the right file"
            )
        if any(known.get(key) != value for key, value in backbone.prepared().items()):
            raise UserError(
                f"{self.folder}: timm prepares images for {known['name']} otherwise than when it was trained "
                f"({backbone.prepared()}); install the timm that environment.json names"
            )
        return backbone

    @property
    def head_hash(self) -> str:
        """Of a teacher's head: what its students are bound to."""
        return hash_state(self.heads["map"])

    def check_data(self, fingerprint: str, transforms: int) -> None:
        """Raises UserError unless the data set of that fingerprint is the one trained on, its evaluation images made
        by the same version of the transforms."""
        if self.facts.get("transforms", transforms) != transforms:
            raise UserError(
                f"{self.folder}: was trained on images of transforms {self.facts['transforms']}, this code has "
                f"{transforms}; train it again, or use the commit that environment.json names"
            )
        if self.facts["data"] != fingerprint:
            raise UserError(
                f"{self.folder}: was trained on other images or another split than these; use the same data and split "
                "options for both"
            )


def read_run(folder: Path) -> Trained:
    """A finished student's run with its teacher, or a finished teacher's.

    Raises:
        UserError: no run there, an unfinished one, one whose files are missing, damaged or do not belong together, or
            a student whose teacher has another head now.
    """
    args = read_args(folder)
    if "teacher" not in args:
        return _read(folder, args, "teacher")
    try:
        teacher = read_teacher(Path(str(args["teacher"])))
    except UserError as error:
        raise UserError(f"{folder}: its teacher (in args.yaml): {error}") from None
    student = _read(folder, args, "student", teacher)
    known, now = student.facts.get("teacher"), teacher.head_hash
    if known is None:
        print(f"note: {folder} was trained before runs recorded their teacher's head; it is taken on trust")
    elif known != now:
        raise UserError(
            f"{folder}: was taught by another head than {teacher.folder} has now (hash {known[:12]}, now "
            f"{now[:12]}); put that teacher back, or train the student again"
        )
    return student


def read_teacher(folder: Path) -> Trained:
    """A teacher's run; raises as ``read_run`` does, also for a student's."""
    args = read_args(folder)
    if "teacher" in args:
        raise UserError(f"{folder}: a student's run, not a teacher's")
    return _read(folder, args, "teacher")


def _read(folder: Path, args: dict, role: str, teacher: Trained | None = None) -> Trained:
    wrong = {name for name, kind in NEEDED[role].items() if not isinstance(args.get(name), kind)}
    wrong |= {name for name in NEEDED[role] if isinstance(args.get(name), bool)}  # to Python True is a number
    if not wrong and (args.get("student_size") or 1) < 1:
        wrong = {"student_size"}
    lacking = sorted(wrong)
    if lacking:
        raise UserError(f"{folder}/args.yaml: damaged, no usable {some(lacking)}; train that run again")
    read_summary(folder)
    heads: dict[str, HashHead] = {}
    facts: dict = {}
    for metric in SELECTED_BY[role]:
        file = Path(folder) / best_file(metric)
        heads[metric], own = load_head(file)
        if own.get("role") != role:
            raise UserError(f"{file}: a {own.get('role')}'s checkpoint, not a {role}'s")
        _check_facts(file, own, facts)
        facts = own
    return Trained(Path(folder), args, heads, facts, teacher)


def _check_facts(file: Path, own: dict, others: dict) -> None:
    backbone = own.get("backbone")
    whole = isinstance(backbone, dict) and all(isinstance(backbone.get(k), str) for k in ("name", "features", "sha256"))
    if not whole or not isinstance(own.get("data"), str):
        raise UserError(f"{file}: incomplete checkpoint (no backbone or data in it); train that run again")
    if any(key in others and own[key] != others[key] for key in ("config", "backbone", "data")):
        raise UserError(f"{file}: belongs to another run than the checkpoint beside it; train that run again")
