"""What is installed from a wheel: all three packages, nothing else, and it answers."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(build, check=True, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_built_wheel_holds_the_three_packages_whole_and_answers(wheel: Path, tmp_path: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(ROOT).as_posix()
        for package in ("harness", "pipelines", "models")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held == ours
    program = f"import sys; sys.path.insert(0, {str(wheel)!r}); from harness.cli import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "compare" in done.stdout


def test_the_cpus_block_is_built_from_what_the_wheel_brings(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'installed')!r}); import torch; from models import block;"
        "print(block.__file__, tuple(block.relu_lrn_maxpool(torch.ones(1, 4, 5, 5)).shape))"
    )
    environment = os.environ | {"TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout == f"{tmp_path / 'installed' / 'models' / 'block.py'} (1, 4, 2, 2)\n", done.stderr
    assert len(list((tmp_path / "built").glob("*.so"))) == 1


def test_another_projects_models_folder_is_named_rather_than_imported(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MODELS = {}\n")
    program = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; from harness.cli import main; sys.exit(main(['table', 'x.csv']))"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert f"{tmp_path / 'models'} hides the harness's own models" in done.stderr
