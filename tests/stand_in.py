"""A driver of two GPUs that do not exist, for the real pynvml to ask: stand_in_nvml.c as a library."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def build(folder: Path) -> Path:
    """Compile it into this folder, which LD_LIBRARY_PATH then has to name."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "the stand-in driver needs a C compiler: apt-get install gcc"
    source = Path(__file__).with_name("stand_in_nvml.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(folder / "libnvidia-ml.so.1"), str(source)], check=True)
    return folder
