"""What the whole suite shares: the GPUs it may count on, and the benchmarks' options."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runs import Started, draw_pictures, run_words

if TYPE_CHECKING:
    from killed_runs import NeverStopped, Runs

# One rank's threads, as on the machines that the project promises to be tested on.
os.environ.setdefault("OMP_NUM_THREADS", "2")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpus", type=int, default=0, help="fail, rather than leave tests out, with fewer GPUs")
    parser.addoption("--data", default=None, help="image folder for the input benchmarks (default: the embedded set)")


def gpus_found() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs more GPUs than there are, so that a pass never hides a skip; --require-gpus forbids it."""
    needs = {item: marker.args[0] for item in items if (marker := item.get_closest_marker("gpus"))}
    required = config.getoption("--require-gpus")
    if not needs and not required:
        return
    found = gpus_found()
    if found < required:
        raise pytest.UsageError(f"--require-gpus {required} was asked and {found} GPUs were found")
    left_out = [item for item, number in needs.items() if number > found]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where indices of shards are kept while a test runs."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "index"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a test may lay a set."""
    return tmp_path / "set"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few images in class folders; nothing may change them."""
    return draw_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def start(pictures: Path, tmp_path: Path) -> Iterator[Callable[..., Started]]:
    """Starts a run with a table of this test's; whatever is left of it ends with the test."""
    begun: list[Started] = []

    def begin(*words: str, by: tuple[str, ...] = (), data: Path = pictures, **named: Any) -> Started:
        table = tmp_path / "table.csv"
        begun.append(Started(table, *by, *run_words(data, table, *words), **named))
        return begun[-1]

    yield begin
    for each in begun:
        each.clear_away()


@pytest.fixture
def runs(pictures: Path, tmp_path: Path) -> Iterator[Runs]:
    """Runs that save themselves, with a table of this test's; whatever is left of them ends with the test."""
    from killed_runs import Runs

    begun = Runs(pictures, tmp_path / "table.csv")
    yield begun
    begun.clear_away()


@pytest.fixture(scope="module")
def never_stopped(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> NeverStopped:
    from killed_runs import NeverStopped

    return NeverStopped(pictures, tmp_path_factory.mktemp("never_stopped"))
