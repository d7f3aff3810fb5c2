"""The laws of the house: who may import whom, where each heavy dependency comes in, and how large a room may grow."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "ringmoe"

BASE = {"errors", "modality", "counter", "naming", "batch", "config", "clock", "faults"}
# what each room may import, itself aside; three columns (data's, model's, machine's) that touch only at the top
ALLOWED = {
    "errors": set(),
    "counter": set(),
    "naming": set(),
    "faults": set(),
    "clock": {"faults"},
    "config": {"errors"},
    "modality": {"errors", "config"},
    "batch": {"modality", "config"},
    "raster": BASE,
    "data": BASE | {"raster"},
    "layers": BASE,
    "moe": BASE,
    "models": BASE | {"layers", "moe"},
    "distributed": BASE,
    "checkpoint": BASE | {"distributed"},
    "report": BASE | {"raster", "data"},
    "testing": BASE,
}
BELOW_TOP = BASE | {"raster", "data", "layers", "moe", "models", "distributed", "checkpoint", "report"}
ALLOWED |= {
    "train": BELOW_TOP,
    "compress": BELOW_TOP | {"train"},
    "plan": BELOW_TOP,
    "cli": BELOW_TOP | {"train", "compress", "plan"},
}

# heavy dependency -> the room that imports it, and in how many files
HEAVY = {
    "rasterio": ("raster", None),
    "webdataset": ("data", 1),
    "xxhash": ("data", 1),
    "pcodec": ("data", 1),
    "urllib3": ("data", 1),
    "fsspec": ("data", 1),
    "deepspeed": ("distributed", 1),
    "mpi4py": ("distributed", 1),
    "fairscale": ("distributed", 1),
    "torch.utils.tensorboard": ("train", 1),
    "tensorboard": ("train", 1),
    "matplotlib": ("report", None),
    "scipy": ("compress", 2),
}
LIGHT_ROOMS = [
    "layers",
    "moe",
    "models",
    "distributed.topology",
    "checkpoint",
    "counter",
    "naming",
    "clock",
    "faults",
    "batch",
    "modality",
]


def _imports(path: Path) -> Iterator[str]:
    """Full names of what a file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path):
    room = _room(path)
    assert room in ALLOWED, f"a new room: say in this test what {room} may import"
    used = {name.split(".")[1] for name in _imports(path) if name.startswith("ringmoe.")}
    outside = {name for name in used - {room} if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()}
    assert outside <= ALLOWED[room], f"{room} must not import {sorted(outside - ALLOWED[room])}"


@pytest.mark.parametrize("name", HEAVY)
def test_a_heavy_dependency_has_one_importer(name):
    room, most = HEAVY[name]
    importers = [path for path in FILES if any(used == name or used.startswith(f"{name}.") for used in _imports(path))]
    assert {_room(path) for path in importers} <= {room}
    assert most is None or len(importers) <= most, importers


def test_model_rooms_need_only_torch_and_numpy():
    code = (
        "import importlib, sys\n"
        f"for room in {LIGHT_ROOMS!r}:\n"
        "    importlib.import_module(f'ringmoe.{room}')\n"
        f"    heavy = [name for name in {sorted(HEAVY)!r} if name in sys.modules]\n"
        "    assert not heavy, f'{room} imports {heavy}'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 600, "split the file: 400 lines is the aim, 600 the limit"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= 80, f"{node.name} has {lines} lines: 50 is the aim, 80 the limit"


def test_nothing_unpickles():
    for path in FILES:
        used = set(_imports(path))
        assert "pickle" not in used, path
        assert "torch.load(" not in path.read_text(encoding="utf-8"), path
