"""MLflow's UI on the workspace's runs."""

import os
import sys

import click


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
def ui(port: int) -> None:
    """Serve MLflow on 127.0.0.1 and print the address of the runs table."""
    from leanresnet.errors import redacted
    from leanresnet.files import workspace
    from leanresnet.tracking import runs_table, tracking_uri

    if tracking_uri().startswith("http"):
        click.echo(f"runs: {redacted(tracking_uri()).rstrip('/')}/{runs_table()}")
        return
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    click.echo(f"runs: http://127.0.0.1:{port}/{runs_table()}")
    sys.stdout.flush()
    store = ["--backend-store-uri", tracking_uri(), "--artifacts-destination", (workspace() / "mlartifacts").as_uri()]
    os.execv(
        sys.executable, [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), *store]
    )
