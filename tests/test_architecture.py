"""docs/architecture.md as a test: who may import whom, and how long files and functions may be."""

import ast
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "mer_dist"
LAYERS = (
    {
        "__init__",
        "config",
        "settings",
        "strict",
        "records",
        "errors",
        "files",
        "layout",
        "log",
        "quarantine",
        "parquet",
        "metrics",
        "prefetch",
        "times",
        "lock",
        "slurm_settings",
        "slurm_command",
        "status",
    },
    {
        "models",
        "shards",
        "features",
        "folds",
        "copies",
        "predictions",
        "joined",
        "prior",
        "decisions",
        "label_shift",
        "correction",
        "probe",
        "selection",
        "lineage",
        "recipes",
        "dist",
        "corpus",
    },
    {"stages", "report", "slurm"},
    {"cli", "__main__"},
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
SIBLINGS = {
    ("fuse", "self_train"),
    ("fuse", "vote"),
    ("doctor", "plan"),
    ("plan_text", "plan"),
    ("doctor", "doctor_corpus"),
}
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
            # "from mer_dist import log" imports the module log, not a name of the package.
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
    if LEVEL[lower] > LEVEL[upper]:
        return f"{importer} imports {imported}, which lies above it"
    if {upper, lower} == {"models", "dist"}:
        return f"{importer} imports {imported}: models and dist are independent"
    if upper == "report" and lower == "stages":
        return f"{importer} imports {imported}: the report reads folders, it runs nothing"
    if upper == "stages" and lower in ("stages", "report") and imported.count(".") == 2:
        stage, other = importer.split(".")[-1], imported.split(".")[-1]
        if stage != "run" and (stage, other) not in SIBLINGS:
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
        if path.relative_to(root).parts[0] != "dist"
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if LAUNCHER.fullmatch(node.value)
    ]


@pytest.mark.slow
def test_imports_point_downward_only():
    assert import_faults(PACKAGE) == []


@pytest.mark.slow
def test_files_and_functions_stay_short():
    assert length_faults(PACKAGE) == []


@pytest.mark.slow
def test_only_dist_reads_the_variables_of_a_launcher():
    assert launcher_faults(PACKAGE) == []


def test_the_layers_here_are_those_of_the_document():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("Imports point downward only"))
    for room in LEVEL.keys() - {"__init__", "__main__"}:
        assert f"`{room}`" in line, f"{room} is not in the line on imports"


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("files.py", "from mer_dist.features import join", "lies above it"),
        ("config.py", "def f():\n    import mer_dist.models.clip", "lies above it"),
        ("models/clip.py", "from mer_dist.dist import env", "models and dist are independent"),
        ("dist/env.py", "from ..models import clip", "models and dist are independent"),
        ("stages/extract.py", "from mer_dist.stages.fuse import fuse", "do not import one another"),
        ("stages/fuse.py", "from . import extract", "do not import one another"),
        ("shards/writer.py", "from mer_dist.stages import extract", "lies above it"),
        ("report/page.py", "from mer_dist.stages import fuse", "it runs nothing"),
        ("cellar.py", "from mer_dist import log", "stands in no layer"),
    ],
)
def test_a_planted_import_is_found(tmp_path, file, line, words):
    for name in (
        "log.py",
        "features.py",
        "models/clip.py",
        "dist/env.py",
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


def test_a_planted_long_file_and_function_are_found(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n" + "    x = 1\n" * 70)
    (tmp_path / "b.py").write_text("x = 1\n" * 501)
    assert length_faults(tmp_path) == ["a.py: f has 71 lines", "b.py: 501 lines"]
    (tmp_path / "c.py").write_text("import os\nos.environ['SLURM_PROCID']\n")
    assert launcher_faults(tmp_path) == ["c.py:2: SLURM_PROCID"]


def test_no_folder_of_tests_is_left_out_without_a_word(pytestconfig):
    passed_over = pytestconfig.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    names = {part for folder in folders for part in folder.relative_to(ROOT).parts}
    assert {"dist", "stages"} <= names
    assert not [name for name in names if any(fnmatch(name, pattern) for pattern in passed_over)]
