"""The `leanresnet` program: the group of all commands, and the conversion of errors to one line and an exit code."""

import getpass
import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from leanresnet.errors import LeanResNetError, MemoryLimitError, StorageError, is_first_process, redacted
from pipeline.champion import champion
from pipeline.check import check
from pipeline.compare import compare
from pipeline.distill import distill
from pipeline.download import download
from pipeline.ensemble import ensemble
from pipeline.evaluate import evaluate
from pipeline.experiments import experiments
from pipeline.export import export
from pipeline.init import init
from pipeline.lineage import lineage
from pipeline.listed import check_listed
from pipeline.params import params
from pipeline.playground import playground
from pipeline.predict import predict
from pipeline.results import results
from pipeline.search import search
from pipeline.split import split
from pipeline.streams import NoReaderError, prepare_streams
from pipeline.sync import sync
from pipeline.train import train
from pipeline.ui import ui


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="leanresnet")
def cli() -> None:
    """Train the most accurate ResNet within a parameter budget.

    `dvc repro` runs the stages in order; each stage is also a command.
    """


STAGES = (download, split, train, distill, evaluate)
STUDY = (check, params, init, ensemble, results, compare, experiments, lineage, champion, search)
USE = (predict, playground, export, sync, ui)
for command in STAGES + STUDY + USE:
    cli.add_command(command)


def main() -> NoReturn:
    """Run the program and end the process with `os._exit`.

    The normal shutdown of the interpreter takes a second or two to collect the objects of torch and MLflow, and waits
    for threads of the compiler and of a run that does not reach MLflow. Nothing depends on that shutdown: files are
    complete or absent, and a run has ended or is in its journal.
    """
    prepare_streams()
    _name_the_user()
    os._exit(run())


def _name_the_user() -> None:
    """Set a user name for torch and MLflow if the user id has none, as in some containers."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ["LOGNAME"] = str(os.getuid())


def _run_command() -> None:
    """Run the command; raise an error of the system as one that is shown to the user.

    A training names a batch that fits itself if memory runs out.
    """
    try:
        cli(prog_name="leanresnet", standalone_mode=False)
    except click.Abort:
        # It is a RuntimeError too, but no reason to import torch.
        raise
    except (RuntimeError, MemoryError) as error:
        from leanresnet.jobs.oom import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MemoryLimitError(f"out of memory ({reason}), expected: more free memory") from error
    except OSError as error:
        # A path that may not be looked at, or whose name is too long, is the user's, wherever it is noticed.
        if error.filename is None:
            raise
        raise StorageError(f"{os.fsdecode(error.filename)}: {error.strerror}") from error


def _report(line: str) -> None:
    """Print an error; of several processes that torchrun started, the first one alone.

    Most errors are the same in all of them. The others write theirs where torchrun looks for it, and `launch` prints
    that of the process that caused the failure.
    """
    if is_first_process():
        print(line, file=sys.stderr)
    elif "TORCHELASTIC_ERROR_FILE" in os.environ:
        Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps({"message": line}))


def run() -> int:
    """Run the command and return its exit code; an error that the user can cause is printed as one line."""
    try:
        check_listed()
        _run_command()
        sys.stdout.flush()
    except NoReaderError as error:
        return error.exit_code
    except LeanResNetError as error:
        _report(f"error: {redacted(error)}")
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        _report(f"error: {redacted(error.format_message())}")
        return error.exit_code
    except click.Abort:
        return 130
    return 0
