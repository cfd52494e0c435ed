"""The option --nproc of the commands that train, by which one training runs in several processes."""

import click


def _launch(context: click.Context, option: click.Parameter, processes: int) -> None:
    """Run the command in several processes, unless this is one of them, or a shell completes its options."""
    if processes > 1 and not context.resilient_parsing:
        from leanresnet.jobs.launcher import launch

        launch(processes)


nproc_option = click.option(
    "--nproc",
    type=click.IntRange(1),
    envvar="LEANRESNET_NPROC",
    default=1,
    show_default=True,
    expose_value=False,
    callback=_launch,
    help="Number of processes on this machine that share each batch; for several machines, use torchrun.",
)
