"""What the benchmarks share: where they run, and two sides measured in turn, A B B A, so that a noisy machine is noisy to both."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

TOLD: list[tuple[str, str]] = []


@pytest.fixture
def remember() -> Callable[[str, str], None]:
    """`remember(name, sentence)`: a line at the end of the run."""
    return lambda name, sentence: TOLD.append((name, sentence))


def seconds(function: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    function()
    return time.perf_counter() - start_s


@pytest.fixture
def against(benchmark: Any) -> Callable[..., float]:
    """`against(ours, theirs, blocks)`: the median over `blocks` of A B B A of theirs' time over ours.

    Both are functions that return when their work is done; each runs twice before. The benchmark's own figures are ours.
    `work` is ours' multiply-adds over theirs, for a share of theirs' rate; `their_images` where theirs takes another
    number of images; `ready` gets ours, or theirs, ready outside the clock.
    """

    def measure(
        ours: Callable[[], object],
        theirs: Callable[[], object],
        blocks: int,
        images: int,
        work: float | None = None,
        their_images: int | None = None,
        ready: tuple[Callable[[], object], Callable[[], object]] = (lambda: None, lambda: None),
    ) -> float:
        theirs_s: list[float] = []
        turns = iter(range(2 * blocks))

        def timed_theirs() -> float:
            ready[1]()
            return seconds(theirs)

        def between() -> None:
            if next(turns) % 2:
                theirs_s.extend((timed_theirs(), timed_theirs()))
            ready[0]()

        for function in (ours, theirs, ours, theirs):
            function()
        benchmark.pedantic(ours, setup=between, rounds=2 * blocks)
        ours_s = benchmark.stats.stats.data
        more = images / (their_images or images)
        ratios = [more * sum(theirs_s[i : i + 2]) / sum(ours_s[i : i + 2]) for i in range(0, 2 * blocks, 2)]
        benchmark.extra_info |= {
            "times_as_fast": median(ratios),
            "ratios": ratios,
            "ours_ms": 1000 * median(ours_s),
            "theirs_ms": 1000 * median(theirs_s) * more,
            "images_per_s": images / median(ours_s),
        }
        if work:
            benchmark.extra_info["pct_of_peer_rate"] = 100 * work * median(ratios)
        TOLD.append((benchmark.name, tell(benchmark.extra_info)))
        return median(ratios)

    return measure


def tell(info: dict[str, Any]) -> str:
    """One ratio as a person reads it."""
    times = f"{info['ours_ms']:.4g} against {info['theirs_ms']:.4g} ms"
    if "pct_of_peer_rate" in info:
        return f"{info['pct_of_peer_rate']:.0f} % of its multiply-adds a second ({times})"
    return f"{info['times_as_fast']:.2f} x ({min(info['ratios']):.2f} to {max(info['ratios']):.2f}; {times})"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if TOLD:
        terminalreporter.section("times as fast as the peer: median over blocks of A B B A (least to most)")
    for name, sentence in TOLD:
        terminalreporter.write_line(f"{name:<90} {sentence}")
