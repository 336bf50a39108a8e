"""The commands, thin: words in, a call, words and an exit status out."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import models
import pipelines
from harness.config import AskedWrongly, real, whole
from harness.data import add_data
from harness.evaluate import add_evaluate
from harness.flags import add_run, configs_of
from harness.forecast import add_predict
from harness.paper import add_paper
from pipelines import DataError


class Parser(argparse.ArgumentParser):
    """argparse whose errors are one sentence, and whose flags are written whole."""

    def __init__(self, **named: Any):
        super().__init__(**{"allow_abbrev": False, **named})

    def error(self, message: str) -> NoReturn:
        print(f"error: {message} ({self.prog} --help lists every flag)", file=sys.stderr)
        raise SystemExit(2)


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m harness", description="Rows of images/s, memory and error that can be believed.")
    commands = top.add_subparsers(dest="command", metavar="command", required=True, parser_class=Parser)
    add_run(commands, run_run)

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
    add_paper(commands, Parser)
    add_predict(commands)
    return top


# --- run ----------------------------------------------------------------------------------------------------------


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
        if error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
            errno.EISDIR,
            errno.ENOTDIR,
            errno.ENAMETOOLONG,
        ):
            raise
        where = error.filename or "the output"
        print(
            f"error: {where} cannot be read or written ({error.strerror}): free some space, or name another place",
            file=sys.stderr,
        )
        # What is still to be flushed would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2
