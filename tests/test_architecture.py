"""docs/architecture.md as a test: who may import whom, and how long files and functions may be."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mer_dist"
#: The rooms; each imports those above it in this list alone.
LAYERS = (
    {"__init__"},
    {"core"},
    {"storage"},
    {"config"},
    {"shards"},
    {"corpus", "processes"},
    {"models"},
    {"training", "crossfit", "demo"},
    {"features"},
    {"planning", "slurm"},
    {"fusion"},
    {"interop"},
    {"inspect", "report"},
    {"predict"},
    {"stages"},
    {"arguments"},
    {"cli", "api"},
    {"__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
LINES_OF_A_FILE, LINES_OF_A_FUNCTION = 500, 70
LAUNCHER = re.compile(r"(RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)|SLURM_\w+)")


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(("mer_dist", *(part for part in parts if part != "__init__")))


def imports_of(path: Path, root: Path) -> set[str]:
    """Modules of the package that a file imports, at its top or inside a function."""
    known = {module_of(other, root) for other in root.rglob("*.py")}
    module = module_of(path, root)
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [node.module])])
            # "from mer_dist.core import log" imports the module log, not a name of the package.
            whole = {f"{base}.{alias.name}" for alias in node.names}
            found |= (whole & known) or {base}
    return {name for name in found if name.split(".")[0] == "mer_dist"} - {module}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def fault(importer: str, imported: str) -> str | None:
    """Why one module must not import another; None if it may."""
    upper, lower = room_of(importer), room_of(imported)
    for room in (upper, lower):
        if room not in LEVEL:
            return f"the room {room!r} stands in no layer of docs/architecture.md"
    if upper != lower and LEVEL[lower] >= LEVEL[upper]:
        return f"{importer} imports {imported}, which does not lie below it"
    if upper == lower == "stages" and importer != "mer_dist.stages.run":
        return f"{importer} imports {imported}: stages do not import one another"
    return None


def import_faults(root: Path) -> list[str]:
    edges = [
        (module_of(path, root), imported)
        for path in sorted(root.rglob("*.py"))
        for imported in sorted(imports_of(path, root))
    ]
    return [text for edge in edges if (text := fault(*edge))]


def length_faults(root: Path) -> list[str]:
    faults = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text("utf-8")
        if (count := len(text.splitlines())) > LINES_OF_A_FILE:
            faults.append(f"{path.relative_to(root)}: {count} lines")
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        for node in (node for node in ast.walk(ast.parse(text)) if isinstance(node, functions)):
            if (count := node.end_lineno - node.lineno + 1) > LINES_OF_A_FUNCTION:
                faults.append(f"{path.relative_to(root)}: {node.name} has {count} lines")
    return faults


def launcher_faults(root: Path) -> list[str]:
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.value}"
        for path in sorted(root.rglob("*.py"))
        if path.relative_to(root).parts[0] not in ("processes", "slurm")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if LAUNCHER.fullmatch(node.value)
    ]


def family_faults(root: Path) -> list[str]:
    """Where a family of encoders is named that is no file of its own, the registry, or the demo's models."""
    own = re.compile(r"core/registry\.py|demo/models\.py|models/(clip|hubert|baichuan)\w*\.py")
    return [
        f"{path.relative_to(root)}:{node.lineno}: {node.value}"
        for path in sorted(root.rglob("*.py"))
        if not own.fullmatch(path.relative_to(root).as_posix())
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        # "clip" alone is also what a problem may have lost.
        if isinstance(node, ast.Constant) and node.value in ("hubert", "baichuan")
    ]


@pytest.mark.slow
def test_imports_point_downward_only():
    assert import_faults(PACKAGE) == []


@pytest.mark.slow
def test_files_and_functions_stay_short():
    assert length_faults(PACKAGE) == []


@pytest.mark.slow
def test_no_module_but_its_own_names_a_family_of_encoders():
    assert family_faults(PACKAGE) == []


@pytest.mark.slow
def test_only_processes_and_slurm_read_the_variables_of_a_launcher():
    assert launcher_faults(PACKAGE) == []


def test_the_layers_here_are_those_of_the_document():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("A room imports only"))
    told = [
        set(re.findall(r"`(\w+)`", layer)) for layer in line.partition(":")[2].partition(".")[0].split("<")
    ]
    assert told == [rooms for rooms in LAYERS if not rooms & {"__init__", "__main__"}]


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("storage/files.py", "from mer_dist.features.store import write_shard", "does not lie below it"),
        ("config/config.py", "def f():\n    import mer_dist.models.clip", "does not lie below it"),
        ("processes/env.py", "from ..models import clip", "does not lie below it"),
        ("inspect/verify.py", "from mer_dist.report import page", "does not lie below it"),
        ("stages/extract.py", "from mer_dist.stages.fuse import fuse", "do not import one another"),
        ("stages/fuse.py", "from . import extract", "do not import one another"),
        ("shards/writer.py", "from mer_dist.stages import extract", "does not lie below it"),
        ("report/page.py", "from mer_dist.stages import fuse", "does not lie below it"),
        ("cellar.py", "from mer_dist.core import log", "stands in no layer"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, words):
    for name in (
        "core/log.py",
        "features/store.py",
        "models/clip.py",
        "report/page.py",
        "stages/extract.py",
        "stages/fuse.py",
        "stages/run.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "stages" / "run.py").write_text("from mer_dist.stages import extract, fuse\n")
    assert import_faults(tmp_path) == []
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(line + "\n")
    (found,) = import_faults(tmp_path)
    assert words in found


def test_a_planted_long_file_function_and_name_are_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n" + "    x = 1\n" * 70)
    (tmp_path / "b.py").write_text("x = 1\n" * 501)
    assert length_faults(tmp_path) == ["a.py: f has 71 lines", "b.py: 501 lines"]
    (tmp_path / "c.py").write_text("import os\nos.environ['SLURM_PROCID']\n")
    assert launcher_faults(tmp_path) == ["c.py:2: SLURM_PROCID"]
    (tmp_path / "d.py").write_text("steps = 50 if family == 'hubert' else 1\n")
    assert family_faults(tmp_path) == ["d.py:1: hubert"]


def test_every_room_is_in_the_wheel():
    told = (ROOT / "setup.cfg").read_text("utf-8")
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert rooms == LEVEL.keys() - {"__init__", "__main__", "arguments", "cli"}
    assert all(f"    mer_dist.{room}\n" in told for room in rooms)
