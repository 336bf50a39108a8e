"""`doctor --certify`: what could not be proven without this machine's devices, run on them, as one table."""

from __future__ import annotations

import contextlib
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor
from torch.multiprocessing.spawn import ProcessRaisedException

from harness import doctor, environment
from harness.checks import (
    COLUMNS,
    COPY_SHARE,
    DECODE_LEVELS,
    IMAGES_DECODED,
    LEAST_PASSES,
    MEAN_LEVELS,
    MOST_PASSES,
    RESIZE_LEVELS,
    Measured,
    NotRun,
    Operation,
    apart_in,
    bandwidth,
    block_numerics,
    compiled_step,
    lrn_numerics,
    pixels,
    step_config,
    two_ranks,
)
from harness.config import PARALLEL
from models import block, lrn
from pipelines import sources
from pipelines.dataset import embedded
from pipelines.sources.imageset import Split

TIME_BOX_S = 120.0
BLOCK_DTYPES = {"cuda": lrn.DTYPES["cuda"], "cpu": block.ON_CPU}
VERDICT_WIDTH, CHECK_WIDTH, WORST_WIDTH = 10, 26, 31
MARKS = {
    "ok": doctor.OK,
    "measured": doctor.NOTE,
    "not run": doctor.NOTE,
    "off": doctor.MISSING,
    "failed": doctor.MISSING,
}


@dataclass(frozen=True)
class Check:
    name: str
    compared: str
    run: Callable[[], Measured]


def checks(device: torch.device, split: Callable[[], Split]) -> list[Check]:
    """Every check, those that this device cannot run included; `split` gives the pictures to decode."""
    normalise = partial(lrn.local_response_norm, columns=COLUMNS)
    fused = partial(block.relu_lrn_maxpool, columns=COLUMNS)
    right = "forward and backward on layers 1 and 2 against float64"
    return [
        Check(
            "GPUs found",
            "what torch can use against what the driver shows",
            partial(gpus_found, environment.visible_gpus()),
        ),
        *(
            Check(f"LRN, {name_of(dtype)}", right, partial(lrn_numerics, device, dtype, normalise))
            for dtype in (torch.float32, torch.bfloat16, torch.float16)
        ),
        *(
            Check(f"block, {name_of(dtype)}", right, partial(block_numerics, device, dtype, fused))
            for dtype in BLOCK_DTYPES[device.type]
        ),
        *input_checks(device, split),
        Check("compiled step", "gradients in float32 against eager ones", partial(compiled_step, device)),
        *(
            Check(
                f"two ranks, {parallel}",
                "gradients in float32 against one process on all images",
                partial(two_ranks, device, parallel=parallel),
            )
            for parallel in PARALLEL
        ),
        *speed_checks(device, "LRN", normalise),
        *speed_checks(device, "block", fused),
    ]


def speed_checks(device: torch.device, kernel: str, operation: Operation) -> list[Check]:
    """Both directions of a kernel against a copy; without a bound on a CPU, whose memory others share."""
    found = []
    for backward, direction in enumerate(("forward", "backward")):
        least, most = LEAST_PASSES[kernel][backward], MOST_PASSES[kernel][backward]
        bound, images = (COPY_SHARE * least / most, 1024) if device.type == "cuda" else (None, 4)
        run = partial(bandwidth, device, operation, bool(backward), least, bound, images)
        found.append(
            Check(
                f"{kernel} {direction}, speed",
                f"{least:.2f} passes over layers 1 and 2 in bfloat16 against a copy's two",
                run,
            )
        )
    return found


def gpus_found(shown: int) -> Measured:
    """Whether torch can use the GPUs that the driver shows; its own count may come from the driver, usable or not."""
    usable = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Measured(usable, "usable", shown, at_least=True)


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def input_checks(device: torch.device, split: Callable[[], Split]) -> list[Check]:
    """DALI's GPU graph against its CPU graph on the same pictures, decoded on either."""

    def of(where: torch.device, decode: str) -> Tensor:
        if device.type != "cuda":
            raise NotRun("needs a GPU")
        return pixels(step_config(where, decode=decode, images_per_gpu=IMAGES_DECODED), split(), where)

    compared = f"the GPU's pixels against the CPU's, {IMAGES_DECODED} images"
    expected = partial(of, torch.device("cpu"), "cpu")
    return [
        Check(
            f"DALI decode {decode}, {name}",
            compared,
            partial(apart_in, partial(of, device, decode), expected, how, levels),
        )
        for decode, name, how, levels in (
            ("mixed", "mean", torch.mean, MEAN_LEVELS),
            ("mixed", "worst", torch.max, DECODE_LEVELS),
            ("cpu", "worst", torch.max, RESIZE_LEVELS),
        )
    ]


def report(todo: Sequence[Check], time_box_s: float) -> list[str]:
    """Run the checks, print each when it ends, and go on after one that raises; their verdicts."""
    print(f"{'verdict':<{VERDICT_WIDTH}}{'check':<{CHECK_WIDTH}}{'worst':<{WORST_WIDTH}}bound")
    began_s, verdicts = time.monotonic(), []
    for number, check in enumerate(todo, start=1):
        with progress(f"{number} of {len(todo)}: {check.name}"):
            verdict, told = attempt(check, time_box_s - (time.monotonic() - began_s))
        verdicts.append(verdict)
        mark = doctor.coloured(verdict.ljust(VERDICT_WIDTH), MARKS[verdict])
        print(f"{mark}{check.name:<{CHECK_WIDTH}}{told}\n{'':{VERDICT_WIDTH}}{check.compared}", flush=True)
    return verdicts


def attempt(check: Check, left_s: float) -> tuple[str, str]:
    """(verdict, what was measured or why nothing was)."""
    if left_s <= 0:
        return "not run", "no time is left"
    try:
        seen = check.run()
    except NotRun as why:
        return "not run", str(why)
    except Exception as error:
        return "failed", textwrap.shorten(reason(error), 160)
    bound = "none" if seen.bound is None else f"{'at least' if seen.at_least else 'at most'} {seen.bound:.3g}"
    return seen.verdict, f"{f'{seen.worst:.3g} {seen.unit}':<{WORST_WIDTH}}{bound}"


def reason(error: Exception) -> str:
    """The kind of the error and its first line; of a rank's error too, which arrives as the text of a traceback."""
    told = str(error) if isinstance(error, ProcessRaisedException) else f"{type(error).__name__}: {error}"
    # A traceback indents all but its title and the error itself.
    found = re.search(r"^[\w.]+: .*$", told, re.M)
    return found.group() if found else told


@contextlib.contextmanager
def progress(text: str) -> Iterator[None]:
    """Show on a terminal what is running, and wipe it out afterwards."""
    shown = sys.stderr.isatty()
    if shown:
        print(f"{text} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def exit_status(verdicts: Sequence[str]) -> int:
    return int("off" in verdicts or "failed" in verdicts)


def last_line(verdicts: Sequence[str], device: torch.device) -> str:
    counts = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in MARKS if verdict in verdicts)
    if device.type == "cpu":
        return f"{counts}. Nothing was certified for a GPU: torch finds none, and these were a CPU's forms."
    name = f"{torch.cuda.get_device_name(device)}, the first of {torch.cuda.device_count()}"
    if exit_status(verdicts):
        return f"{counts}. Not certified on {name}."
    return f"{counts}. Certified on {name}{', but for what was not run' if 'not run' in verdicts else ''}."


def main(data: str | None, time_box_s: float = TIME_BOX_S) -> int:
    """Print the table for the first GPU, or else the CPU; exit status 1 if anything is off.

    pipelines.DataError says what is wrong with the folder of pictures; without one the embedded set is taken, where needed.
    """
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    given = sources.open_source(data).train if data else None
    verdicts = report(checks(device, cache(lambda: given or embedded.open_embedded_set().train)), time_box_s)
    print("\n" + textwrap.fill(last_line(verdicts, device), doctor.line_width()))
    return exit_status(verdicts)
