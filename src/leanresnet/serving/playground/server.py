"""The server of the page in `app.py`, which only this machine can reach."""

from pathlib import Path

from streamlit import net_util
from streamlit.web import cli

UPLOAD_MB = 20
OPTIONS = (
    "--server.address=127.0.0.1",
    # Other hosts are refused, such as the name of a foreign page that was rebound to this machine (DNS rebinding).
    "--server.allowedHosts=127.0.0.1",
    "--server.allowedHosts=localhost",
    f"--server.maxUploadSize={UPLOAD_MB}",
    "--server.headless=true",
    "--server.fileWatcherType=none",
    "--browser.gatherUsageStats=false",
    "--client.toolbarMode=minimal",
    "--client.showErrorDetails=none",
    "--logger.level=warning",
    "--logger.hideWelcomeMessage=true",
)


def serve(models: Path, test: Path, device: str, port: int) -> None:
    """Serve the page for the models in the folder `models`, and the file `test` of the test split, until it is stopped.

    The server makes no request to another machine.
    """
    # For its check of a request's origin, Streamlit would ask an external server for the address of this machine.
    net_util.get_external_ip = lambda: None
    page = Path(__file__).with_name("app.py")
    cli.main(["run", str(page), *OPTIONS, f"--server.port={port}", "--", str(models), str(test), device], "streamlit")
