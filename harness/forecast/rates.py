"""The rates of this machine's CPU that predictions start from, measured: products, copies, decoding, gloo."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from harness.config import AskedWrongly
from harness.environment import cpu_cores_usable, cpu_name

REPEATS = 9
SIDE = 1536
COPIED_FLOATS = 2**26
GRADIENT_FLOATS = 60_965_224
DECODED_IMAGES = 64


def measure() -> str:
    """Low, middle and high of every rate, as the entry of `harness.forecast.cards` holds them; AskedWrongly where it cannot be."""
    try:
        import nvidia.dali  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise AskedWrongly(
            f"--measure needs torch and DALI and there is no {error.name}: python -m pip install -e ."
        ) from None
    rates = {
        "fp32 product, TFLOP/s a core": product_tflop_per_s(),
        "copy, GB/s read and written by all cores": copy_gb_per_s(),
        "rrc from original JPEGs, images/s a core": decode_images_per_s(),
        "gloo all-reduce of two processes, GB/s each way": gloo_gb_per_s(),
    }
    lines = [
        f'    measured({min(each):.3g}, {median(each):.3g}, {max(each):.3g}, "{name}"),' for name, each in rates.items()
    ]
    return "\n".join([f"{cpu_name()}, {cpu_cores_usable()} cores:", *lines])


def timed(work: Callable[[], object], repeats: int = REPEATS) -> list[float]:
    """Seconds of each repeat, after one that is not counted."""
    seconds = []
    for _ in range(repeats + 1):
        start_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start_s)
    return seconds[1:]


def product_tflop_per_s() -> list[float]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    seconds = timed(lambda: torch.mm(a, b))
    torch.set_num_threads(threads)
    return [2 * SIDE**3 / each / 1e12 for each in seconds]


def copy_gb_per_s() -> list[float]:
    import torch

    source = torch.ones(COPIED_FLOATS)
    target = torch.empty_like(source)
    return [2 * 4 * COPIED_FLOATS / each / 1e9 for each in timed(lambda: target.copy_(source))]


def decode_images_per_s() -> list[float]:
    """Random-resized crops of the embedded set on one thread."""
    from nvidia.dali import fn, pipeline_def

    from pipelines.dataset.embedded import make_embedded_set

    files = [str(path) for path in sorted(make_embedded_set().glob("train/*/*"))]

    @pipeline_def(batch_size=DECODED_IMAGES, num_threads=1, device_id=None, prefetch_queue_depth=1)  # type: ignore[untyped-decorator]
    def crops() -> object:
        encoded, _ = fn.readers.file(files=files, random_shuffle=False)
        images = fn.resize(fn.decoders.image_random_crop(encoded), size=[224, 224])
        return fn.crop_mirror_normalize(images, mirror=0, output_layout="HWC")

    pipeline = crops()
    pipeline.build()
    return [DECODED_IMAGES / each for each in timed(pipeline.run)]


def gloo_gb_per_s() -> list[float]:
    """Of AlexNet's gradients; around a ring of two, each process sends as many bytes as there are."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "harness.forecast.rates", folder]
        both = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
        codes = [process.wait() for process in both]
        if any(codes):
            raise AskedWrongly(
                f"--measure's two gloo processes ended with {codes}: free memory or loopback, and try again"
            )
        seconds: list[float] = json.loads((Path(folder) / "seconds.json").read_text())
    return [4 * GRADIENT_FLOATS / each / 1e9 for each in seconds]


def all_reduce(folder: Path, rank: int) -> None:
    import torch
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gradients = torch.ones(GRADIENT_FLOATS)
    seconds = timed(lambda: distributed.all_reduce(gradients), repeats=4)
    if rank == 0:
        (folder / "seconds.json").write_text(json.dumps(seconds))
    distributed.destroy_process_group()


if __name__ == "__main__":
    all_reduce(Path(sys.argv[1]), int(sys.argv[2]))
