"""Command ui: MLflow's UI with the runs of the workspace."""

import os
import sys

import click

from pipeline.port import check_free, port_option


@click.command()
@port_option(5000)
def ui(port: int) -> None:
    """Serve MLflow on 127.0.0.1 and print the address of the table of runs."""
    from leanresnet.errors import redacted
    from leanresnet.files import workspace
    from leanresnet.tracking.connection import runs_table, tracking_uri

    if tracking_uri().startswith("http"):
        click.echo(f"runs: {redacted(tracking_uri()).rstrip('/')}/{runs_table()}")
        return
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    table = runs_table()
    check_free(port)
    click.echo(f"runs: http://127.0.0.1:{port}/{table}")
    sys.stdout.flush()
    store = ["--backend-store-uri", tracking_uri(), "--artifacts-destination", (workspace() / "mlartifacts").as_uri()]
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
    )
