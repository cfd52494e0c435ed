"""Command ui: MLflow's UI with the runs of the workspace."""

import http.client
import os
import sys
import time

import click

from pipeline.port import check_free, port_option

POLL_SECONDS = 0.2
# MLflow imports a module that starlette has deprecated.
NOT_OURS = "ignore:starlette.middleware.wsgi is deprecated:UserWarning"


@click.command()
@port_option(5000)
@click.option("--addresses", "only_addresses", is_flag=True, help="Print the addresses and serve nothing.")
def ui(port: int, only_addresses: bool) -> None:
    """Serve MLflow on 127.0.0.1, with the runs of the workspace.

    The addresses of its saved views are printed when the page answers; Ctrl-C ends it. If MLFLOW_TRACKING_URI names a
    server, only the addresses are printed.
    """
    from leanresnet.files import workspace
    from leanresnet.tracking.connection import ARTIFACTS, has_server, page, page_addresses, tracking_uri

    lines = [f"{name:8} {page(port)}/{address}" for name, address in page_addresses().items()]
    if only_addresses or has_server():
        click.echo("\n".join(lines))
        return
    check_free(port)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    os.environ.setdefault("PYTHONWARNINGS", NOT_OURS)
    listen = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--uvicorn-opts", "--log-level=warning"]
    # The address may have a password, which other users would see among the arguments of a process.
    os.environ |= {"MLFLOW_BACKEND_STORE_URI": tracking_uri(), "MLFLOW_REGISTRY_STORE_URI": tracking_uri()}
    files = ["--artifacts-destination", (workspace() / ARTIFACTS).as_uri()]
    _announce(port, lines)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *listen, *files])


def _announce(port: int, lines: list[str]) -> None:
    """Print lines when the server answers, from a process of its own that ends with this one.

    This process becomes the server, so that a signal to it reaches the server and no other process.
    """
    sys.stdout.flush()
    server = os.getpid()
    if os.fork():
        return
    while os.getppid() == server:
        if _answers(port):
            click.echo("\n".join(lines))
            sys.stdout.flush()
            break
        time.sleep(POLL_SECONDS)
    os._exit(0)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
