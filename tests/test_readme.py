"""The README tells what the commands do and what the tables hold."""

from __future__ import annotations

import contextlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from harness import cli, results, rows, summary
from harness.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
TABLES = sorted((ROOT / "results").glob("*.csv"))


def git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout


@pytest.fixture
def published(tmp_path: Path) -> list[str]:
    """The tables that git holds: whoever has run the harness here has rows of their own in results/ too."""
    try:
        names = git("ls-files", ":(glob)results/*.csv").split()
    except (OSError, subprocess.CalledProcessError):
        return list(map(str, TABLES))  # no checkout: nobody has added rows to what was unpacked
    assert names, "the README's table comes from results/*.csv"
    for name in names:
        (tmp_path / Path(name).name).write_text(git("show", f":{name}"))
    return sorted(map(str, tmp_path.glob("*.csv")))


def test_the_table_in_the_readme_is_what_the_table_command_prints(
    published: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["table", *published]) == 0
    printed = capsys.readouterr().out.strip()
    shown = re.search(r"<!-- table -->\n(.*?)<!-- /table -->", README, re.S)
    assert shown is not None
    assert shown.group(1).strip() == printed


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_every_row_in_results_agrees_with_its_raw_observations(path: Path) -> None:
    assert results.verify(path) == []


def commands() -> list[str]:
    """Every `python -m harness` line of the README's code blocks, without its comment."""
    blocks = re.findall(r"^```\n(.*?)^```", README, re.S | re.M)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.match(r"python -m harness", line)]


@pytest.mark.parametrize("line", commands())
def test_every_harness_command_in_the_readme_is_one_that_parses(line: str) -> None:
    words = shlex.split(line)[3:]
    with contextlib.suppress(SystemExit) if "--help" in words else contextlib.nullcontext():
        cli.parser().parse_args(words)


def test_the_two_commands_of_the_first_screen_are_what_ci_runs() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    first_screen = README[: README.index("## What a row says")]
    for command in ("python -m pip install -e . && python -m harness run", "python -m pip install tox && tox"):
        assert command in first_screen
    assert "pip install -q tox && tox" in script
    assert "python -m harness run" in script


def test_the_readme_names_every_pipeline_and_recipe() -> None:
    for name in (*RECIPES, "--pipeline torch"):
        assert name in README


def test_the_summary_of_every_row_in_results_can_be_told() -> None:
    for path in TABLES:
        for row in results.read_table(path):
            lines = summary.summary(row, path.name).splitlines()
            assert len(lines) == 11 + (rows.ranks_of(row) > 1)
            assert all(len(line) < 240 for line in lines)
