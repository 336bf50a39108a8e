"""The house: which file may import which, and what must work without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("harness", "pipelines", "models")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Every arrow inside harness/: a file may import what stands to its right and nothing else of ours.
MAY_IMPORT = {
    "__init__": set(),
    "__main__": {"cli"},
    "cli": {
        "run",
        "data",
        "evaluate",
        "forecast",
        "paper",
        "certify",
        "doctor",
        "box",
        "noise",
        "results",
        "compare",
        "summary",
        "config",
        "flags",
    },
    "flags": {"resume", "recipes", "config"},
    "run": {
        "folders",
        "join",
        "launch",
        "resolve",
        "results",
        "rows",
        "summary",
        "progress",
        "environment",
        "images",
        "config",
        "resume",
    },
    "data": {"environment", "progress", "config"},
    "evaluate": {
        "showing",
        "answers",
        "predictions",
        "checkpoint",
        "data",
        "folders",
        "environment",
        "flags",
        "config",
    },
    "showing": {"checkpoint", "images", "resolve", "environment", "progress", "config"},
    "answers": {"predictions", "checkpoint", "workload", "config"},
    "predictions": {"results", "rows", "metrics", "config"},
    "forecast": {"results", "rows", "summary", "environment", "config"},
    "paper": {
        "run",
        "showing",
        "answers",
        "predictions",
        "workload",
        "checkpoint",
        "schedule",
        "images",
        "data",
        "results",
        "rows",
        "summary",
        "progress",
        "metrics",
        "trial",
        "flags",
        "recipes",
        "config",
    },
    "certify": {"checks", "doctor", "environment", "config"},
    "checks": {"box", "seeded", "resolve", "workload", "schemes", "environment", "recipes", "metrics", "config"},
    "doctor": {"environment"},
    "box": {"forecast", "workload", "measure", "telemetry", "doctor", "environment", "metrics", "trial"},
    "telemetry": {"environment", "trial"},
    "join": {"rank", "agree", "folders", "launch", "resolve", "images", "config", "resume"},
    "launch": {"folders", "environment", "progress", "config"},
    "resolve": {"workload", "environment", "config"},
    "folders": {"forecast", "results", "rows", "environment", "progress", "trial", "config", "checkpoint"},
    "rank": {
        "seen",
        "train",
        "workload",
        "measure",
        "agree",
        "heartbeat",
        "folders",
        "images",
        "progress",
        "trial",
        "config",
        "checkpoint",
        "state",
    },
    "train": {
        "seen",
        "workload",
        "seeded",
        "trace",
        "telemetry",
        "agree",
        "heartbeat",
        "measure",
        "ceilings",
        "progress",
        "metrics",
        "trial",
        "config",
        "state",
        "course",
        "job",
    },
    "job": {
        "state",
        "workload",
        "seen",
        "agree",
        "course",
        "schedule",
        "measure",
        "progress",
        "metrics",
        "trial",
        "config",
    },
    "seen": {"telemetry", "heartbeat", "measure", "trial"},
    "state": {"workload", "seen", "agree", "checkpoint", "metrics", "trial", "config"},
    "resume": {"checkpoint", "course", "recipes", "config"},
    "checkpoint": {"config"},
    "course": {"schedule", "config"},
    "seeded": {"workload", "schemes", "config"},
    "trace": {"measure", "progress"},
    "agree": {"config"},
    "heartbeat": {"environment"},
    "workload": {"schemes", "measure", "config", "checkpoint", "schedule", "update"},
    "schemes": {"config"},
    "ceilings": {
        "box",
        "workload",
        "schemes",
        "agree",
        "heartbeat",
        "measure",
        "progress",
        "metrics",
        "trial",
        "config",
    },
    "measure": {"trial"},
    "update": {"schedule", "config"},
    "schedule": set(),
    "images": {"config"},
    "compare": {"noise", "pairs", "results", "rows", "summary", "metrics", "config"},
    "noise": {"run", "pairs", "results", "rows", "environment", "recipes", "config"},
    "pairs": {"results", "rows", "summary", "metrics", "config"},
    "summary": {"advice", "progress", "results", "rows", "metrics"},
    "advice": {"rows"},
    "results": {"rows", "metrics", "trial", "config"},
    "rows": {"metrics", "trial", "config"},
    "metrics": {"trial"},
    "trial": set(),
    "progress": set(),
    "environment": set(),
    "recipes": {"config"},
    "config": {"schedule"},
}
TORCH_FREE = tuple(
    set(MAY_IMPORT)
    - {
        "rank",
        "seen",
        "state",
        "train",
        "job",
        "workload",
        "schemes",
        "seeded",
        "trace",
        "agree",
        "ceilings",
        "measure",
        "certify",
        "checks",
        "answers",
        "update",
    }
    - {"box"}
)
HEAVY = {"torch", "nvidia", "triton", "torchvision"}


def imports(path: Path, *, top_level_only: bool = False, types_too: bool = True) -> set[str]:
    """Dotted names of the modules that a file imports, `from a import b` as a.b."""
    tree = ast.parse(path.read_text())
    if not types_too:
        tree.body = [
            node for node in tree.body if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        ]
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by dots: write the whole name"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def of_harness(path: Path) -> set[str]:
    return {name.split(".")[1] for name in imports(path) if name.startswith("harness.")} & set(MAY_IMPORT)


@pytest.mark.parametrize("path", sorted((ROOT / "harness").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_inside_the_harness_point_one_way(path: Path) -> None:
    """A folder of harness/ is one place: its files may import each other."""
    place = path.stem if path.parent == ROOT / "harness" else path.parent.name
    assert place in MAY_IMPORT, f"{path.name} is new: draw its arrows here"
    assert of_harness(path) - {place} <= MAY_IMPORT[place]


def test_the_allowed_arrows_have_no_cycle() -> None:
    seen: dict[str, int] = {}

    def depth(name: str, above: tuple[str, ...] = ()) -> int:
        assert name not in above, " -> ".join((*above, name))
        if name not in seen:
            seen[name] = 1 + max((depth(other, (*above, name)) for other in MAY_IMPORT[name]), default=0)
        return seen[name]

    assert all(depth(name) for name in MAY_IMPORT)


@pytest.mark.parametrize("package", ["models", "pipelines"])
def test_models_and_pipelines_know_neither_the_harness_nor_each_other(package: str) -> None:
    others = {"harness", "models", "pipelines"} - {package}
    for path in (ROOT / package).rglob("*.py"):
        assert not {name.split(".")[0] for name in imports(path)} & others, path


# What the files of pipelines/ may import of it, by folder; the contract in __init__ and its constants are everyone's.
PIPELINES_MAY_IMPORT = {
    "sources": {"sources"},
    "": {"", "sources"},
    "dataset": {"", "sources", "dataset"},
}
EVERYONES = {"augment", "AUGMENTS", "DataError"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "pipelines").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_arrows_inside_the_pipelines_point_from_sets_to_batches_to_sources(path: Path) -> None:
    if path == ROOT / "pipelines" / "__init__.py":
        return
    parts = [name.split(".") for name in imports(path, types_too=False) if name.startswith("pipelines.")]
    folders = {part[1] if part[1] in PIPELINES_MAY_IMPORT else "" for part in parts if part[1] not in EVERYONES}
    own = path.parent.name if path.parent.name in PIPELINES_MAY_IMPORT else ""
    assert folders <= PIPELINES_MAY_IMPORT[own]


def test_only_the_workload_builds_models_and_pipelines() -> None:
    builders = {
        path.stem
        for path in (ROOT / "harness").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in ("models.create", "models.create_part", "pipelines.create", "pipelines.part")
    }
    assert builders == {"workload"}


@pytest.mark.parametrize("name", sorted(TORCH_FREE))
def test_what_reads_tables_imports_no_torch_at_the_top(name: str) -> None:
    place = ROOT / "harness" / name
    files = sorted(place.glob("*.py")) if place.is_dir() else [place.with_suffix(".py")]
    roots = {each.split(".")[0] for file in files for each in imports(file, top_level_only=True)}
    assert files
    assert not roots & HEAVY


COMMANDS = {
    "--help": ["--help"],
    "run --help": ["run", "--help"],
    "compare": ["compare", "no-such.csv", "no-such.csv"],
    "verify": ["verify", "no-such.csv"],
    "table": ["table", "no-such.csv"],
    "doctor": ["doctor"],
    "predict": ["predict"],
    "paper table1": ["paper", "table1"],
    "paper table2": ["paper", "table2"],
    "paper figure3": ["paper", "figure3"],
    "paper figure4": ["paper", "figure4"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_a_desk_never_load_torch_or_dali(command: str) -> None:
    program = (
        "import sys\nfrom harness.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        f"loaded = {sorted(HEAVY)!r}\n"
        "print('LOADED', [name for name in loaded if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *COMMANDS[command]], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip().endswith("LOADED []"), done.stdout + done.stderr


def test_help_needs_no_pandas() -> None:
    program = "import sys; sys.modules['pandas'] = sys.modules['numpy'] = None\nfrom harness.cli import main\nmain(['run', '--help'])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "--images-per-gpu" in done.stdout
