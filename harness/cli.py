"""The commands, thin: words in, a call, words and an exit status out."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import models
import pipelines
from harness.config import AskedWrongly, RunConfig, real, whole
from harness.data import add_data
from harness.evaluate import add_evaluate
from harness.forecast import add_predict
from harness.recipes import LENGTHS, PATIENCE, RECIPES, settings
from pipelines import DataError

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
    doctor.add_argument("--box", action="store_true", help="is the machine itself well? A minute, red lines first")
    doctor.add_argument(
        "--seconds", type=real(0, above=True), metavar="N", help="go on with --box for so long, as a soak"
    )
    doctor.add_argument(
        "--noise", action="store_true", help="run one thing again and again: what compare may call a difference here"
    )
    doctor.add_argument("--launches", type=whole(1), metavar="N", help="launches of --noise (default 20)")
    doctor.set_defaults(call=run_doctor)

    add_data(commands, Parser)
    add_evaluate(commands)
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
    if "resume" in typed:
        from harness.resume import completed

        typed = completed(typed)
    gpus, cpus = typed.pop("gpus", None), typed.pop("cpus", None)
    if gpus and cpus:
        raise AskedWrongly("--gpus and --cpus were both asked and a run has ranks of one kind: give one of them")
    lengths = [f"--{name.replace('_', '-')}" for name in LENGTHS if name in typed]
    if len(lengths) > 1:
        raise AskedWrongly(f"{' and '.join(lengths)} were both asked and a run has one length: give one of them")
    of_images = [f"--{name}" for name in ("data", "exclude", "statistics", "views") if name in typed]
    if typed.get("pipeline") == "synthetic" and of_images:
        raise AskedWrongly(f"--pipeline synthetic reads no images and {of_images[0]} was given: leave one of them out")
    if "target_train_error_pct" in typed and "evaluate_every" not in typed:
        raise AskedWrongly("--target-train-error-pct is looked at with every evaluation: give --evaluate-every too")
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
    asked |= of_the_rate(asked)
    refuse_saving(asked, typed)
    if asked["augment"] == "none" and asked.get("views", 1) > 1:
        raise AskedWrongly(
            f"--views {asked['views']} was asked and --augment none shows the whole centre square, which has one view: leave --views out"
        )
    if asked.get("jitter") and asked["augment"] != "rrc+jitter":
        raise AskedWrongly(
            f"--jitter was given and --augment {asked['augment']} jitters no colours: ask for --augment rrc+jitter"
        )
    kind = "gpus" if gpus else "cpus"
    return [RunConfig(**asked, **({kind: number} if number else {})) for number in gpus or cpus or (None,)]


def of_the_rate(asked: dict[str, Any]) -> dict[str, Any]:
    """What --schedule leaves to its defaults; AskedWrongly where its flags do not fit together."""
    schedule = asked.get("schedule", RunConfig.schedule)
    if (schedule in ("epochs", "steps")) != bool(asked.get("drops")):
        raise AskedWrongly(
            f"--schedule {schedule} was asked {'with' if asked.get('drops') else 'without'} --drops: "
            "--drops 25,51,79 belongs to --schedule epochs or steps, and only there"
        )
    if schedule != "plateau":
        if asked.get("patience"):
            raise AskedWrongly(
                f"--patience was given and --schedule {schedule} waits for nothing: ask for --schedule plateau"
            )
        return {}
    if not asked.get("evaluate_every"):
        raise AskedWrongly("--schedule plateau looks at the validation error: say how often with --evaluate-every")
    return {"patience": asked.get("patience") or PATIENCE}


def refuse_saving(asked: dict[str, Any], typed: dict[str, Any]) -> None:
    """AskedWrongly where what belongs to checkpoints was asked without them, or where several launches would share them."""
    if not asked.get("checkpoint_every"):
        for name in ("keep", "time_limit", "max_restarts"):
            if typed.get(name):
                raise AskedWrongly(
                    f"--{name.replace('_', '-')} was given and this run saves nothing: say how often with --checkpoint-every"
                )
    elif asked.get("launches", 1) > 1:
        if typed.get("launches"):
            raise AskedWrongly(
                "--launches and --checkpoint-every were both asked and a run that is saved is one launch: leave one out"
            )
        asked["launches"] = 1


def run_run(arguments: argparse.Namespace) -> int:
    from harness.run import run

    asked = configs_of(arguments)
    several = len(asked) > 1 or getattr(arguments, "launches", 1) > 1
    return run(asked, arguments.table, several=several, quiet=arguments.quiet)


# --- the others ---------------------------------------------------------------------------------------------------


def run_compare(arguments: argparse.Namespace) -> int:
    from harness.compare import compare
    from harness.run import settle_unfinished

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
    from harness.run import settle_unfinished

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
    from harness.run import settle_unfinished

    for path in arguments.tables:
        settle_unfinished(path)
    print(summary.table(arguments.tables))
    return 0


def run_doctor(arguments: argparse.Namespace) -> int:
    from harness import doctor

    for flag, needs in (("data", "certify"), ("seconds", "box"), ("launches", "noise")):
        if getattr(arguments, flag) is not None and not getattr(arguments, needs):
            raise AskedWrongly(f"--{flag} was given and means something only with --{needs}: add it")
    if arguments.box or arguments.noise:
        if arguments.box + arguments.noise + arguments.certify > 1:
            raise AskedWrongly("--box, --noise and --certify each want the machine to themselves: ask for one of them")
        return run_box(arguments) if arguments.box else run_noise(arguments)
    status = doctor.main()
    if arguments.certify:
        from harness import certify

        print()
        status = max(status, certify.main(arguments.data))
    return status


def run_box(arguments: argparse.Namespace) -> int:
    from harness.box import report

    return report.main(arguments.seconds)


def run_noise(arguments: argparse.Namespace) -> int:
    from harness import noise

    return noise.main(arguments.launches or noise.LAUNCHES)


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
