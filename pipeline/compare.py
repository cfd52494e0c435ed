"""Command compare: a table of MLflow's runs."""

import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pipeline.options import FilePath, test_option

if TYPE_CHECKING:
    from leanresnet.analysis.comparison import Comparison


@click.command()
@click.argument("targets", nargs=-1, metavar="[RUN|MODEL]...")
@click.option(
    "--experiment",
    "experiments",
    metavar="NAME",
    multiple=True,
    help="The runs of the DVC experiments NAME and NAME-...; can be repeated.",
)
@click.option(
    "--group-by",
    type=click.Choice(["seed", "none"]),
    default="seed",
    show_default=True,
    help="Whether runs that differ only in their seed share a row.",
)
@click.option("--against", metavar="RUN", help="Compare each row with that of RUN, a name or an id, seed by seed.")
@click.option("--out", type=FilePath(dir_okay=False), help="Write the table to OUT.md and a picture to OUT.png.")
@click.option("--html", type=FilePath(dir_okay=False), help="Write an HTML page, and log it to the best run.")
@test_option
def compare(
    targets: tuple[str, ...],
    experiments: tuple[str, ...],
    group_by: str,
    against: str | None,
    out: Path | None,
    html: Path | None,
    test: Path,
) -> None:
    """Print a table of runs with their params and results.

    The params are those in which the runs differ. The columns are aligned in a terminal; into a file or a pipe, the
    table is Markdown. RUN|MODEL is the id of an MLflow run, or the path of a model. Without it, all finished runs are
    compared. Runs that differ only in their seed share a row with mean and standard deviation.
    """
    from leanresnet.analysis.comparison import compare as side_by_side
    from leanresnet.analysis.comparison import select
    from leanresnet.analysis.dvc_experiments import weights_of_experiments
    from leanresnet.errors import ConfigError
    from leanresnet.files import workspace

    if against is not None and group_by == "none":
        raise click.UsageError("--against compares seeds, expected: no --group-by none with it")
    here: dict[str, list[str]] = {}
    # The runs of a server can be compared outside of any workspace.
    with suppress(ConfigError):
        here = weights_of_experiments(workspace(), experiments)
    found = side_by_side(select(targets, experiments, here), group_by == "seed", against)
    table = found.text(shutil.get_terminal_size().columns) if sys.stdout.isatty() else found.markdown()
    click.echo("\n\n".join([table, *found.notes]))
    if out is not None:
        click.echo(f"{', '.join(map(str, found.write(out)))}: written", err=True)
    if html is not None:
        _write_page(found, html, test)


def _write_page(found: "Comparison", html: Path, test: Path) -> None:
    """Write the page and log it to the best run; it shows where the two best evaluated models differ."""
    from leanresnet.analysis.disagreement import disagreement
    from leanresnet.analysis.html_report import write_page
    from leanresnet.analysis.runs import upload
    from leanresnet.data.splits import load_split
    from leanresnet.errors import DataError, warn
    from leanresnet.text import plain

    best = [group[0] for group in found.groups if "test/accuracy" in group[0].metrics][:2]
    differ = None
    if len(best) == 2:
        try:
            differ = disagreement(*best)
        except DataError as error:
            warn(f"the page does not show where the two best models differ: {error}")
    write_page(found, differ, load_split(test) if differ and test.exists() else None, html)
    run = found.groups[0][0]
    upload(run.run_id, html, "comparisons")
    kept = f"also as comparisons/{html.name} of the run {plain(run.name)} in MLflow ({run.run_id})"
    click.echo(f"{html}: written, {kept}", err=True)
