"""The house's rules, read from the source: who may import whom, where commands are, how files are loaded."""

import ast
import itertools
from pathlib import Path

import pytest
from conftest import ROOT

# What each folder may import of ours beside itself; the arrows of the layout, which all point one way.
ARROWS = {
    "utils": set(),
    "models": {"utils"},
    "losses": {"utils"},
    "retrieval": {"data", "losses", "models", "utils"},
    "data": {"models", "utils"},
    "search": {"data", "models", "retrieval", "utils"},  # a leaf: nothing but tests and benchmarks imports it
}
COMMANDS = ("scripts", "benchmarks")  # and what lies at the top
OF_SEARCH = (Path("search/__main__.py"), Path("search/encode.py"))  # its own


def files() -> list[Path]:
    """All Python of the project, its tests too."""
    tops = [ROOT, *(ROOT / name for name in (*ARROWS, *COMMANDS, "image", "tests"))]
    return sorted(file for top in tops for file in (top.glob("*.py") if top == ROOT else top.rglob("*.py")))


TREES = {file.relative_to(ROOT): ast.parse(file.read_text(encoding="utf-8")) for file in files()}


def module_of(file: Path) -> str:
    return ".".join(file.with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(file) for file in TREES}


def imported(tree: ast.AST) -> set[str]:
    """Modules of ours that are imported anywhere in a file, functions included; none is imported relatively."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"a relative import in line {node.lineno}"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & MODULES


def is_command(module: str) -> bool:
    top = module.split(".")[0]
    return top in COMMANDS or (module == top and Path(f"{top}.py") in TREES)


IMPORTS = {module_of(file): imported(tree) for file, tree in TREES.items()}


def test_the_rules_below_see_the_project():
    assert {"distill", "losses.brcd", "scripts.compare", "utils.files", "benchmarks.heads"} <= MODULES
    assert {"losses.methods", "models.heads", "data.views"} <= IMPORTS["distill"]
    assert is_command("distill") and is_command("scripts.report") and not is_command("losses")
    folders = {file.parts[0] for file in TREES if len(file.parts) > 1}
    assert folders | {"search"} == {*ARROWS, *COMMANDS, "image", "tests"}  # which may be deleted
    python = {p.parent.relative_to(ROOT).parts[0] for p in ROOT.glob("*/*.py")} - folders
    assert not python, f"folders of Python that no rule knows: {python}"


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows_point_one_way(folder):
    allowed = ARROWS[folder] | {folder}
    for module in (m for m in IMPORTS if m.split(".")[0] == folder):
        for other in IMPORTS[module]:
            assert other.split(".")[0] in allowed, f"{module} imports {other}"
            assert not is_command(other), f"{module} imports {other}, a command"


def test_search_is_a_leaf():
    """Deleting it breaks nothing else."""
    for module, others in IMPORTS.items():
        if module.split(".")[0] not in ("search", "benchmarks") and not module.startswith("tests.search"):
            assert not [other for other in others if other.split(".")[0] == "search"], module


def test_only_commands_import_commands():
    for module, others in IMPORTS.items():
        if not is_command(module) and module.split(".")[0] not in ("tests", "image"):
            assert not any(map(is_command, others)), f"{module} imports a command of {others}"


def test_no_modules_import_each_other_in_a_circle():
    seen: dict[str, bool] = {}  # False: on the way, True: done

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert seen.get(module, True), f"a circle: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in seen:
            seen[module] = False
            for other in sorted(IMPORTS[module] - {module}):
                visit(other, (*way, module))
            seen[module] = True

    for module in IMPORTS:
        visit(module, ())


def test_commands_lie_at_the_top_in_scripts_or_in_benchmarks():
    for file, tree in TREES.items():
        if len(file.parts) > 1 and file.parts[0] not in (*COMMANDS, "image") and file not in OF_SEARCH:
            for node in ast.walk(tree):
                named = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == "main"
                asks = isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id == "__name__"
                assert not named and not asks, f"{file}:{node.lineno}: a command"


def dotted(node: ast.expr) -> str:
    """The name that is called: "np.load"; "" for what has none."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(dotted(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False), "numpy.load": ("allow_pickle", False)}
UNSAFE = {"pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "pd.read_pickle", "yaml.load"}
UNSAFE |= {"yaml.unsafe_load", "yaml.full_load"}


@pytest.mark.parametrize("file", TREES, ids=str)
def test_no_file_is_loaded_that_could_run_code(file):
    for name, call in calls(TREES[file]):
        assert name not in UNSAFE, f"{file}:{call.lineno}: {name}"
        if name in SAFE:
            key, value = SAFE[name]
            given = [k.value for k in call.keywords if k.arg == key]
            assert len(given) == 1 and isinstance(given[0], ast.Constant) and given[0].value is value, (
                f"{file}:{call.lineno}: {name} without {key}={value}"
            )
    for node in ast.walk(TREES[file]):  # by another name the calls above would not be seen
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle", "joblib", "yaml"):
            assert not {alias.name for alias in node.names} & {"load", "loads", "Unpickler"}, f"{file}:{node.lineno}"


# The tests themselves


RANDOM = {f"torch.{name}" for name in ("rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal")}
SEEDED = {"RandomState", "default_rng", "SeedSequence", "Generator", "PCG64"}


def test_what_hypothesis_gives_is_all_that_its_tests_draw_from():
    """Else a failing example could not be run again. Only calls in the test itself are seen."""
    checked = 0
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            if not any(isinstance(d, ast.Call) and dotted(d.func) == "given" for d in node.decorator_list):
                continue
            checked += 1
            for name, call in calls(node):
                unseeded = name in RANDOM and "generator" not in {k.arg for k in call.keywords}
                unseeded |= name.startswith(("np.random.", "random.")) and name.split(".")[-1] not in SEEDED
                unseeded |= name.startswith("np.random.") and name.split(".")[-1] in SEEDED and not call.args
                assert not unseeded, f"{file}:{call.lineno}: {name} of no seed"
    assert checked >= 10


def test_every_test_begins_in_an_empty_folder_outside_the_checkout(tmp_path):
    assert Path.cwd() == tmp_path and ROOT not in tmp_path.parents and not list(tmp_path.iterdir())


def test_no_test_names_a_folder_of_the_checkout_to_write_to():
    """Paths that tests hand on are below tmp_path, or below ROOT, where only these are looked at."""
    for file, tree in TREES.items():
        if file.parts[0] != "tests":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                first = node.value.split("/")[0]
                assert "/" not in node.value or first not in ("runs", "cache", "results"), (
                    f"{file}:{node.lineno}: {node.value}"
                )


def test_no_two_tests_of_a_file_have_one_name():
    """The second would hide the first."""
    for file, tree in TREES.items():
        names = sorted(n.name for n in tree.body if isinstance(n, (ast.FunctionDef, ast.ClassDef)))
        twice = [name for name, group in itertools.groupby(names) if len(list(group)) > 1]
        assert not twice, f"{file}: {twice}"
