"""A run read back from its folder: a teacher, or a student with the teacher that taught it."""

from dataclasses import dataclass
from pathlib import Path

from models.backbones import FrozenBackbone, build_backbone, set_batch_norm_statistics
from models.heads import HashHead, load_head
from utils.errors import UserError
from utils.runs import read_args

# What each kind of run selects by, on its validation queries; each keeps its own best checkpoint.
SELECTED_BY = {"teacher": ("map",), "student": ("sshp", "ashp")}


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
        return backbone

    def check_data(self, fingerprint: str) -> None:
        """Raises UserError unless the data set of that fingerprint is the one trained on."""
        if self.facts["data"] != fingerprint:
            raise UserError(
                f"{self.folder}: was trained on other images or another split than these; use the same data and split "
                "options for both"
            )


def read_run(folder: Path) -> Trained:
    """A student's run with its teacher, or a teacher's.

    Raises:
        UserError: no run there, or a checkpoint that is missing, damaged or of another role.
    """
    args = read_args(folder)
    if "teacher" not in args:
        return _read(folder, args, "teacher")
    return _read(folder, args, "student", read_teacher(args["teacher"]))


def read_teacher(folder: Path) -> Trained:
    """A teacher's run; raises as ``read_run`` does, also for a student's."""
    args = read_args(folder)
    if "teacher" in args:
        raise UserError(f"{folder}: a student's run, not a teacher's")
    return _read(folder, args, "teacher")


def _read(folder: Path, args: dict, role: str, teacher: Trained | None = None) -> Trained:
    heads, facts = {}, {}
    for metric in SELECTED_BY[role]:
        file = Path(folder) / best_file(metric)
        heads[metric], facts = load_head(file)
        if facts.get("role") != role:
            raise UserError(f"{file}: a {facts.get('role')}'s checkpoint, not a {role}'s")
    return Trained(Path(folder), args, heads, facts, teacher)
