"""The command `run`: from what was asked to its rows, on this machine or as one rank of another launcher's job."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import models
from harness.config import AskedWrongly, RunConfig
from pipelines import DataError

if TYPE_CHECKING:
    from harness.folders import Launch


def default_table(config: RunConfig, machine: dict[str, Any]) -> Path:
    """results/<the accelerator, or the CPU and its cores>.csv under the current folder."""
    name = machine.get("gpu_name") or f"{machine['cpu_name'] or 'cpu'} {machine['cpu_cores_usable']} cores"
    return Path("results") / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def run(asked: list[RunConfig], table: Path | None, *, several: bool, quiet: bool) -> int:
    """Rows for every group asked for, or, in another launcher's job, this rank's share of one; an exit status.

    `several`: more than one launch or group was typed, which a job has no place for.
    """
    from harness import environment, join, resolve, results, resume

    cores, gpus = environment.cpu_cores_usable(), environment.visible_gpus()
    compiler = environment.cpp_compiler().found is not None
    asked = [resume.located(config) for config in asked]
    job = join.inside_a_job()
    if job is not None:
        if several:
            raise AskedWrongly(
                "inside torchrun's job one launch of one group runs: leave --launches and lists of ranks out"
            )
        asked = [join.as_the_job(asked[0].with_(launches=1), job, gpus)]
    elif asked[0].nodes > 1:
        raise AskedWrongly(
            f"--nodes {asked[0].nodes} was asked and this is one: start a rank a GPU by torchrun on each"
        )
    configs = [
        resolve.resolve(config, cores, gpus, fusible=models.can_fuse(config.model), compiler=compiler)
        for config in asked
    ]
    for config in configs:
        resolve.check_gpus(job.ranks_here if job and config.gpus else config.gpus, gpus)
        resolve.check_scheme(config)
        resolve.check_block(config, compiler)
    lacks = environment.what_compiling_lacks(on_gpu=configs[0].on_gpu)
    # A GPU runs Triton's kernels, which are compiled, in eager mode too.
    if lacks and (configs[0].compile == "on" or configs[0].on_gpu):
        raise AskedWrongly(lacks)
    needs_peer = configs[0].model in models.NEED_TORCHVISION or configs[0].pipeline == "torch"
    if needs_peer and environment.version_of("torchvision") is None:
        raise AskedWrongly("torchvision was asked for and is not installed: python -m pip install -e '.[peer]'")
    most_gpus = job.ranks_here if job else max(c.gpus or 0 for c in configs)
    table = table or default_table(configs[0], environment.machine(most_gpus if configs[0].on_gpu else 0, "."))
    if job is not None:
        return run_in_job(asked[0], configs[0], table, quiet=quiet)
    results.check_table(table)
    settle_unfinished(table)
    return run_groups(configs, table, quiet=quiet)


def run_in_job(asked: RunConfig, config: RunConfig, table: Path, *, quiet: bool) -> int:
    """This process as one rank of a job; rank 0 writes the row."""
    from harness import join, results

    if os.environ["RANK"] == "0":
        results.check_table(table)
        settle_unfinished(table)
    try:
        launch, rank = join.join(asked, config, table)
    except (AskedWrongly, DataError) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        # As Python ends, threads of the job's store and of gloo may abort the process, and its status would be theirs.
        os._exit(2)
    return finish(launch, table, 0, quiet=quiet) if rank == 0 else 0


def settle_unfinished(table: Path) -> None:
    """A row for every launch of this table that was killed before it could write its own, said aloud."""
    if any((table.parent / "runs").glob("*/running.json")):
        from harness import folders

        for sentence in folders.settle_unfinished(table):
            print(sentence, file=sys.stderr)


def run_groups(configs: list[RunConfig], table: Path, *, quiet: bool) -> int:
    """Every launch of every group in turn; the exit status of the worst."""
    from harness import environment, folders, resolve, resume
    from harness.images import open_images
    from harness.progress import Display
    from pipelines import sources

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    asked = []
    for config in configs:
        with Display(quiet=quiet) as display:
            images = open_images(config, lambda done, of: display.show({"phase": "data", "share": done / of}))
        resolve.check_shape(config, len(images.train))
        resolve.check_images(config, images)
        if config.resume:
            resume.refuse_another_run(config, images, folders.dataset_cells(images))
        asked.append((config, images))
    say(sources.described(images))
    if images.val is None and configs[0].pipeline != "synthetic":
        say("no validation set: no val/ folder, and no images to spare for one; the error columns stay empty")
    if configs[0].precision == "bf16" and not configs[0].on_gpu and not resolve.cpu_multiplies_bf16():
        say("this CPU has no bf16 instructions: bf16 will be far slower than fp32 here")
    lacks_compiler = not configs[0].on_gpu and environment.cpp_compiler().found is None
    if lacks_compiler and models.can_fuse(configs[0].model):
        say("no C++ compiler: ReLU, LRN and max-pool run as separate operations (--block plain)")
    worst = 0
    for config, images in asked:
        say(resolve.plan(config))
        group_id = folders.new_group_id()
        for number in range(1, config.launches + 1):
            job = folders.Launch.begin(config, images, table, group_id, number, config.ranks)
            status = run_launch(job, table, quiet=quiet)
            worst = max(worst, status)
            if status:
                break
        if worst > 1:
            break
    return worst


def run_launch(job: Launch, table: Path, *, quiet: bool) -> int:
    """One launch from its folder to its row; an exit status."""
    from harness import launch
    from harness.progress import Display

    try:
        with Display(quiet=quiet) as display:
            failure, stopped_by = launch.run_ranks(job.config, job.folder, display)
    except BaseException:
        # What a rank has already written down is not thrown away with an empty folder.
        if not any(job.folder.glob("rank-*.json")):
            job.discard()
        raise
    return finish(job, table, stopped_by, failure=failure, quiet=quiet)


def finish(job: Launch, table: Path, stopped_by: int, *, failure: str = "", quiet: bool) -> int:
    """Record, row, table and summary of a launch that has ended; an exit status."""
    from harness import progress, resume, rows, summary

    record = job.record(failure, stopped=bool(stopped_by))
    if stopped_by and not job.saved and not any(rank["windows"] for rank in record["trial"]["ranks"]):
        job.discard()
        print("interrupted before the timed steps began: no row was written", file=sys.stderr)
        return 128 + stopped_by
    row = job.finish(table, record)
    if not quiet:
        print(summary.summary(row, str(table)), flush=True)
        if (job.folder / progress.OPERATORS).exists():
            print(summary.profile(job.folder), flush=True)
    if row["status"] != "ok":
        print(f"{row['status']}: {row['status_reason']}", file=sys.stderr)
    if row["status"] not in rows.COUNTS and (words := resume.words_to_go_on(job.folder, job.config, table)):
        print(f"go on with: {words}", file=sys.stderr)
    if stopped_by or row["status"] == "interrupted":
        return 128 + (stopped_by or signal.SIGTERM)
    return 0 if row["status"] in rows.COUNTS else 1
