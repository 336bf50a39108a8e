"""How many images a second the input gives, alone, against its peers and its limit: `pytest --benchmark-only -k input`.

Targets are checked where `--data` names real photographs; the embedded set's pictures are too easy to decode.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from nvidia.dali import Pipeline, fn, types

import pipelines
from pipelines.augment import CHANNEL_MEANS, CROP_AREA, CROP_ASPECT
from pipelines.dataset.embedded import open_embedded_set
from pipelines.sources import open_source
from pipelines.sources.imageset import ImageSet, Split

BATCH, DTYPE, PREFETCH = 64, "float32", 2
BATCHES_A_TURN = 8
BLOCKS = 8
THREADS = len(os.sched_getaffinity(0))
GPU_CASES = [pytest.param(augment, marks=pytest.mark.gpus(1)) for augment in ("rrc", "paper")]

pytestmark = [
    pytest.mark.benchmark(group="input"),
    # Trying more workers than cores is the point.
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    # pytest-benchmark's own, where a test ends before it measures.
    pytest.mark.filterwarnings("ignore:Benchmark fixture was not used"),
]


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest) -> ImageSet:
    data = request.config.getoption("--data")
    return open_source(data) if data else open_embedded_set()


@pytest.fixture
def on_target(request: pytest.FixtureRequest) -> Callable[[float, float], None]:
    """`on_target(ratio, least)`: fails below it, on real photographs."""

    def check(ratio: float, least: float) -> None:
        if request.config.getoption("--data"):
            assert ratio >= least, f"{ratio:.3f} x, and {least} x was to be reached"

    return check


class Side:
    """One way of getting batches, timed with full queues on a machine that does nothing else of ours."""

    def __init__(self, batches: Iterator[Any], batches_a_turn: int = BATCHES_A_TURN) -> None:
        self.batches, self.batches_a_turn = batches, batches_a_turn

    @property
    def images(self) -> int:
        return BATCH * self.batches_a_turn

    def take(self) -> None:
        for _ in range(self.batches_a_turn):
            next(self.batches)

    def ready(self) -> None:
        """Let the other side finish what it makes ahead, then use up what this one made ahead while nobody looked."""
        while busy_s() > 0.01:
            pass
        for _ in range(PREFETCH + 1):
            next(self.batches)


def busy_s(wait_s: float = 0.1) -> float:
    """CPU seconds that this process and its children used while this one slept."""

    def used() -> float:
        own = psutil.Process()
        return sum(sum(each.cpu_times()[:2]) for each in (own, *own.children(recursive=True)))

    before = used()
    time.sleep(wait_s)
    return used() - before


@pytest.fixture
def open_side() -> Iterator[Callable[..., Side]]:
    """`open_side(split, pipeline, augment, ...)`: our iterator as a side, closed after the test."""
    with ExitStack() as stack:

        def opened(
            split: Split, pipeline: str = "dali", augment: str = "rrc", turn: int = BATCHES_A_TURN, **more: Any
        ) -> Side:
            asked = {
                "images_per_batch": BATCH,
                "augment": augment,
                "dtype": DTYPE,
                "threads": THREADS,
                "prefetch": PREFETCH,
            }
            return Side(
                stack.enter_context(closing(pipelines.create(pipeline, split=split, **{**asked, **more}))), turn
            )

        yield opened


def run_dali(define: Callable[[], tuple[Any, ...]]) -> Iterator[Any]:
    """The outputs of a bare DALI pipeline, one after the other."""
    pipeline = Pipeline(
        batch_size=BATCH, num_threads=THREADS, device_id=None, seed=1, prefetch_queue_depth=PREFETCH, exec_dynamic=True
    )
    with pipeline:
        pipeline.set_outputs(*define())
    pipeline.build()
    while True:
        yield pipeline.run()


def read(split: Split) -> Any:
    places = list(range(len(split)))
    return fn.readers.file(files=list(split.files), labels=places, shuffle_after_epoch=True, name="reader")


def bare_rrc(split: Split) -> Callable[[], tuple[Any, ...]]:
    """What anyone would write for random-resized crops."""

    def define() -> tuple[Any, ...]:
        encoded, index = read(split)
        images = fn.decoders.image_random_crop(
            encoded, random_area=list(CROP_AREA), random_aspect_ratio=list(CROP_ASPECT), adjust_orientation=False
        )
        images = fn.resize(images, size=[224, 224])
        return normalised(images, list(CHANNEL_MEANS), mirror=fn.random.coin_flip()), index

    return define


def plain_paper(split: Split) -> Callable[[], tuple[Any, ...]]:
    """The paper's graph as it is usually written: decode all, resize, cut 256, cut 224, colour, flip."""

    def define() -> tuple[Any, ...]:
        encoded, index = read(split)
        images = fn.resize(fn.decoders.image(encoded, adjust_orientation=False), resize_shorter=256)
        images = fn.crop(images, crop=(256, 256))
        noise = fn.random.normal(stddev=5.0, shape=3)
        at = {f"crop_pos_{axis}": fn.random.uniform(range=[0.0, 1.0]) for axis in "xy"}
        mean = types.Constant(list(CHANNEL_MEANS), dtype=types.FLOAT) - noise
        return normalised(images, mean, mirror=fn.random.coin_flip(), crop=(224, 224), **at), index

    return define


def normalised(images: Any, mean: Any, **options: Any) -> Any:
    return fn.crop_mirror_normalize(images, dtype=types.FLOAT, output_layout="HWC", mean=mean, **options)


def fastest_loader(
    open_side: Callable[..., Side], split: Split, augment: str, remember: Callable[[str, str], None]
) -> Side:
    """torchvision's loader with 1, 2 or 3 workers, whichever is fastest here."""
    speeds, sides = {}, {}
    for workers in (1, 2, 3):
        side = sides[workers] = open_side(split, "torch", augment, threads=workers)
        side.ready()
        begun_s = time.perf_counter()
        side.take()
        speeds[workers] = side.images / (time.perf_counter() - begun_s)
    best = max(speeds, key=lambda workers: speeds[workers])
    told = ", ".join(f"{workers} workers {speed:.0f}" for workers, speed in speeds.items())
    remember(f"torchvision's loader, {augment}", f"images/s: {told}")
    for workers, side in sides.items():
        if workers != best:
            side.batches.close()  # type: ignore[attr-defined]
    return sides[best]


@pytest.mark.parametrize("augment", ["rrc", "rrc+jitter", "paper", "code2012"])
def test_input_alone(benchmark: Any, open_side: Callable[..., Side], images: ImageSet, augment: str) -> None:
    side = open_side(images.train, augment=augment)
    benchmark.pedantic(side.take, setup=side.ready, rounds=3)
    benchmark.extra_info["images_per_s"] = side.images / benchmark.stats.stats.median


@pytest.mark.parametrize("augment", GPU_CASES)
def test_input_alone_on_a_gpu(benchmark: Any, open_side: Callable[..., Side], images: ImageSet, augment: str) -> None:
    side = open_side(images.train, augment=augment, device="cuda:0", decode="mixed", turn=50)

    def take() -> None:
        side.take()
        torch.cuda.synchronize()

    benchmark.pedantic(take, rounds=3, warmup_rounds=1)
    benchmark.extra_info["images_per_s"] = side.images / benchmark.stats.stats.median


def test_input_iterator_against_bare_dali(
    against: Any, on_target: Any, open_side: Callable[..., Side], images: ImageSet
) -> None:
    ours, bare = open_side(images.train), Side(run_dali(bare_rrc(images.train)))
    on_target(against(ours.take, bare.take, BLOCKS, ours.images, ready=(ours.ready, bare.ready)), 0.98)


@pytest.mark.parametrize(("augment", "least"), [("rrc", 1.6), ("paper", 1.7)])
def test_input_against_torchvision(
    against: Any,
    on_target: Any,
    remember: Any,
    open_side: Callable[..., Side],
    images: ImageSet,
    augment: str,
    least: float,
) -> None:
    peer = fastest_loader(open_side, images.train, augment, remember)
    ours = open_side(images.train, augment=augment)
    on_target(against(ours.take, peer.take, BLOCKS, ours.images, ready=(ours.ready, peer.ready)), least)


def test_input_rrc_against_libjpeg_turbo_alone(
    against: Any, on_target: Any, open_side: Callable[..., Side], images: ImageSet
) -> None:
    """The limit: every picture decoded whole from memory by two threads, and nothing else done."""
    simplejpeg = pytest.importorskip("simplejpeg")
    encoded = [Path(file).read_bytes() for file in images.train.files[:1024]]
    turn = itertools.cycle(encoded)
    ours = open_side(images.train)
    with ThreadPoolExecutor(2) as pool:

        def decode() -> None:
            list(pool.map(lambda image: simplejpeg.decode_jpeg(image).shape, itertools.islice(turn, ours.images)))

        on_target(against(ours.take, decode, BLOCKS, ours.images, ready=(ours.ready, lambda: None)), 0.6)


def test_input_paper_against_the_plain_graph(
    against: Any, on_target: Any, open_side: Callable[..., Side], images: ImageSet
) -> None:
    ours, plain = open_side(images.train, augment="paper"), Side(run_dali(plain_paper(images.train)))
    on_target(against(ours.take, plain.take, BLOCKS, ours.images, ready=(ours.ready, plain.ready)), 1.35)


@pytest.mark.parametrize(("form", "least", "turn"), [("prepared-jpeg", 5, 32), ("prepared-raw", 16, 96)])
def test_input_paper_from_a_prepared_set_against_the_plain_graph_from_originals(
    against: Any, on_target: Any, open_side: Callable[..., Side], images: ImageSet, tmp_path: Path,
    form: str, least: float, turn: int,
) -> None:  # fmt: skip
    from pipelines.dataset.prepare import prepare

    squares = open_source(prepare(images, tmp_path / "squares", form=form)).train
    ours, plain = open_side(squares, augment="paper", turn=turn), Side(run_dali(plain_paper(images.train)))
    ready = (ours.ready, plain.ready)
    on_target(against(ours.take, plain.take, BLOCKS, ours.images, their_images=plain.images, ready=ready), least)
