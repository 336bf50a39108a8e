"""A driver of two GPUs that do not exist, for the real pynvml to ask: stand_in_nvml.c as a library."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Collection
from pathlib import Path


def build(folder: Path, without: Collection[str] = ()) -> Path:
    """Compile it into this folder, which LD_LIBRARY_PATH then has to name; `without` some functions, as old drivers are."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "the stand-in driver needs a C compiler: apt-get install gcc"
    source = Path(__file__).with_name("stand_in_nvml.c")
    hidden = [f"-D{name}=hidden_{name}" for name in without]
    command = [compiler, "-shared", "-fPIC", *hidden, "-o", str(folder / "libnvidia-ml.so.1"), str(source)]
    subprocess.run(command, check=True)
    return folder
