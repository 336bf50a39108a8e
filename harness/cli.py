"""The commands, thin: words in, a call, words and an exit status out."""

from __future__ import annotations

import argparse
import errno
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import models
import pipelines
from harness.config import AskedWrongly, RunConfig, real
from harness.data import add_data
from harness.forecast import add_predict
from harness.recipes import LENGTHS, RECIPES, settings
from pipelines import DataError

if TYPE_CHECKING:
    from harness.folders import Launch

CHOICES: dict[str, Sequence[Any]] = {
    "model": tuple(models.MODELS),
    "pipeline": tuple(pipelines.PIPELINES),
    "augment": pipelines.AUGMENTS,
    "recipe": tuple(RECIPES),
}


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, and whose flags are written whole."""

    def __init__(self, **named: Any):
        super().__init__(**{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} ({self.prog} --help lists every flag)", file=sys.stderr)
        raise SystemExit(2)


def counts(text: str) -> tuple[int, ...]:
    """`1,2,4`: how many ranks each row group has."""
    numbers = tuple(int(part) for part in text.split(","))
    if any(number < 1 for number in numbers):
        raise argparse.ArgumentTypeError(f"{text} asks for less than one rank: give 1 or more")
    return numbers


counts.__name__ = "number of ranks"


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m harness", description="Rows of images/s, memory and error that can be believed.")
    commands = top.add_subparsers(dest="command", metavar="command", required=True, parser_class=Parser)
    add_run(commands)

    compare = commands.add_parser(
        "compare", help="say which of two tables is faster, by how much, and whether it may be said"
    )
    compare.add_argument("a", metavar="A.csv", type=Path)
    compare.add_argument("b", metavar="B.csv", type=Path)
    compare.add_argument(
        "--fail-below", type=real(0, above=True), metavar="R", help="exit 1 where B/A is below this ratio"
    )
    compare.add_argument(
        "--across", action="append", default=[], metavar="FIELD", help="let this one task field differ"
    )
    compare.add_argument("--best-batch", action="store_true", help="each side's best batch rather than equal ones")
    compare.add_argument("--allow-software", action="store_true", help="let --fail-below judge a confounded ratio")
    compare.set_defaults(call=run_compare)

    verify = commands.add_parser("verify", help="rebuild every row from its raw observations")
    verify.add_argument("tables", metavar="TABLE.csv", type=Path, nargs="+")
    verify.set_defaults(call=run_verify)

    table = commands.add_parser("table", help="print tables as the README shows them")
    table.add_argument("tables", metavar="TABLE.csv", type=Path, nargs="+")
    table.set_defaults(call=run_table)

    doctor = commands.add_parser("doctor", help="say what this machine has and lacks, and the lines that mend it")
    doctor.add_argument("--certify", action="store_true", help="also run the code on its devices: two minutes")
    doctor.add_argument("--data", metavar="FOLDER", help="pictures for --certify (default: the embedded set)")
    doctor.set_defaults(call=run_doctor)

    add_data(commands, Parser)
    add_predict(commands)
    return top


def add_run(commands: Any) -> None:
    run = commands.add_parser(
        "run",
        help="train, measure, append a row a launch",
        description="Without --gpus and --cpus: one rank, on the first GPU or else the CPU. Recipe: throughput with --gpus, "
        "else smoke; a typed flag beats it. Settings left out are chosen for the machine and recorded.",
    )
    groups = {
        "task": "task (what is computed; rows that differ here are never ranked)",
        "shape": "shape",
        "setting": "settings (how it is computed)",
        "bookkeeping": "length and bookkeeping",
    }
    sections = {kind: run.add_argument_group(title) for kind, title in groups.items()}
    for field in fields(RunConfig):
        about = field.metadata
        in_recipes = {name: values[field.name] for name, values in RECIPES.items() if field.name in values}
        note = ", ".join(f"{name} {value}" for name, value in in_recipes.items())
        note = note or (f"default {field.default}" if field.default not in (None, "") else "")
        choices = CHOICES.get(field.name, about["choices"])
        sections[about["kind"]].add_argument(
            "--" + field.name.replace("_", "-"),
            dest=field.name,
            type=counts if field.name in ("gpus", "cpus") else about["parse"],
            choices=choices,
            metavar=None if choices else about["parse"].__name__.split()[-1].upper(),
            default=argparse.SUPPRESS,
            help=f"{about['help']} ({note})" if note else about["help"],
        )
    run.add_argument("--table", type=Path, help="table to append to (default results/<machine>.csv)")
    run.add_argument("--quiet", action="store_true", help="print nothing but errors")
    run.set_defaults(call=run_run)


# --- run ----------------------------------------------------------------------------------------------------------


def configs_of(arguments: argparse.Namespace) -> list[RunConfig]:
    """What was asked, a RunConfig for each row group; AskedWrongly for flags that exclude each other."""
    typed = {
        field.name: getattr(arguments, field.name) for field in fields(RunConfig) if hasattr(arguments, field.name)
    }
    gpus, cpus = typed.pop("gpus", None), typed.pop("cpus", None)
    if gpus and cpus:
        raise AskedWrongly("--gpus and --cpus were both asked and a run has ranks of one kind: give one of them")
    lengths = [f"--{name.replace('_', '-')}" for name in LENGTHS if name in typed]
    if len(lengths) > 1:
        raise AskedWrongly(f"{' and '.join(lengths)} were both asked and a run has one length: give one of them")
    of_images = [f"--{name}" for name in ("data", "exclude", "statistics", "views") if name in typed]
    if typed.get("pipeline") == "synthetic" and of_images:
        raise AskedWrongly(f"--pipeline synthetic reads no images and {of_images[0]} was given: leave one of them out")
    if "exclude" in typed and "data" not in typed:
        raise AskedWrongly("--exclude was given and the embedded set has nothing to leave out: give --data too")
    model = typed.get("model", RunConfig.model)
    side = models.image_size(model)
    if typed.setdefault("image_size", side) != side:
        raise AskedWrongly(f"--image-size {typed['image_size']} was asked and {model} takes {side}: leave it out")
    if model in models.OWN_INIT:
        if "init" in typed:
            raise AskedWrongly(f"--init was asked and {model} has its own initial weights: leave --init out")
        typed["init"] = None
    asked = settings(typed.pop("recipe", "throughput" if gpus else "smoke"), typed)
    if asked.get("jitter") and asked["augment"] != "rrc+jitter":
        raise AskedWrongly(
            f"--jitter was given and --augment {asked['augment']} jitters no colours: ask for --augment rrc+jitter"
        )
    kind = "gpus" if gpus else "cpus"
    return [RunConfig(**asked, **({kind: number} if number else {})) for number in gpus or cpus or (None,)]


def default_table(config: RunConfig, machine: dict[str, Any]) -> Path:
    """results/<the accelerator, or the CPU and its cores>.csv under the current folder."""
    name = machine.get("gpu_name") or f"{machine['cpu_name'] or 'cpu'} {machine['cpu_cores_usable']} cores"
    return Path("results") / (re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") + ".csv")


def check_block(config: RunConfig, compiler: bool) -> None:
    """AskedWrongly where the fused block was asked of a network or a machine that cannot have it."""
    if config.block != "fused":
        return
    if not models.can_fuse(config.model):
        raise AskedWrongly(
            f"--block fused was asked and {config.model} has no ReLU, LRN and 3/2 max-pool in this order: leave --block out"
        )
    if not (config.on_gpu or compiler):
        raise AskedWrongly(
            "--block fused was asked and on a CPU it needs a C++ compiler: `apt-get install g++`, or --block plain"
        )


def run_run(arguments: argparse.Namespace) -> int:
    from harness import environment, join, resolve, results

    cores, gpus = environment.cpu_cores_usable(), environment.visible_gpus()
    compiler = environment.cpp_compiler().found is not None
    asked, job = configs_of(arguments), join.inside_a_job()
    if job is not None:
        if len(asked) > 1 or getattr(arguments, "launches", 1) > 1:
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
        check_block(config, compiler)
    lacks = environment.what_compiling_lacks(on_gpu=configs[0].on_gpu)
    # A GPU runs Triton's kernels, which are compiled, in eager mode too.
    if lacks and (configs[0].compile == "on" or configs[0].on_gpu):
        raise AskedWrongly(lacks)
    needs_peer = configs[0].model in models.NEED_TORCHVISION or configs[0].pipeline == "torch"
    if needs_peer and environment.version_of("torchvision") is None:
        raise AskedWrongly("torchvision was asked for and is not installed: python -m pip install -e '.[peer]'")
    most_gpus = job.ranks_here if job else max(c.gpus or 0 for c in configs)
    table = arguments.table or default_table(
        configs[0], environment.machine(most_gpus if configs[0].on_gpu else 0, ".")
    )
    if job is not None:
        return run_in_job(asked[0], configs[0], table, quiet=arguments.quiet)
    results.check_table(table)
    settle_unfinished(table)
    return run_groups(configs, table, quiet=arguments.quiet)


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
    from harness import environment, folders, resolve
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
    from harness import rows, summary

    record = job.record(failure, stopped=bool(stopped_by))
    if stopped_by and not any(rank["windows"] for rank in record["trial"]["ranks"]):
        job.discard()
        print("interrupted before the timed steps began: no row was written", file=sys.stderr)
        return 128 + stopped_by
    row = job.finish(table, record)
    if not quiet:
        print(summary.summary(row, str(table)), flush=True)
    if row["status"] != "ok":
        print(f"{row['status']}: {row['status_reason']}", file=sys.stderr)
    if stopped_by:
        return 128 + stopped_by
    return 0 if row["status"] in rows.COUNTS else 1


# --- the others ---------------------------------------------------------------------------------------------------


def run_compare(arguments: argparse.Namespace) -> int:
    from harness.compare import compare

    for table in (arguments.a, arguments.b):
        settle_unfinished(table)
    text, status = compare(
        arguments.a,
        arguments.b,
        fail_below=arguments.fail_below,
        across=tuple(arguments.across),
        best_batch=arguments.best_batch,
        allow_software=arguments.allow_software,
    )
    print(text)
    return status


def run_verify(arguments: argparse.Namespace) -> int:
    from harness import results

    status = 0
    for path in arguments.tables:
        settle_unfinished(path)
        findings = results.verify(path)
        count = len(results.read_table(path))
        for finding in findings:
            print(f"{path}: {finding}")
        if not findings:
            print(f"{path}: {count} rows agree with their raw observations")
        status = max(status, int(bool(findings)))
    return status


def run_table(arguments: argparse.Namespace) -> int:
    from harness import summary

    for path in arguments.tables:
        settle_unfinished(path)
    print(summary.table(arguments.tables))
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from harness import doctor

    if arguments.data and not arguments.certify:
        raise AskedWrongly("--data was given and doctor looks at pictures only with --certify: add it")
    status = doctor.main()
    if arguments.certify:
        from harness import certify

        print()
        status = max(status, certify.main(arguments.data))
    return status


def stop(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a row or a check that does not count, 2 asked wrongly, 3 incomparable, 130/143 stopped."""
    asked = parser().parse_args(arguments)
    for module in (models, pipelines):
        home = Path(module.__file__ or "").parents[1]
        if home != Path(__file__).parents[1]:
            print(
                f"error: {home / module.__name__} hides the harness's own {module.__name__}: run from another folder",
                file=sys.stderr,
            )
            return 2
    signal.signal(signal.SIGTERM, stop)
    try:
        return int(asked.call(asked))
    except (AskedWrongly, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as `| head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        where = error.filename or "the output"
        print(
            f"error: {where} cannot be read or written ({error.strerror}): free some space, or name another place",
            file=sys.stderr,
        )
        # What is still to be flushed would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
