"""The page of `app.py`, for this machine alone."""

from pathlib import Path

from streamlit import net_util
from streamlit.web import cli

UPLOAD_MB = 20
OPTIONS = (
    "--server.address=127.0.0.1",
    # The Host of a foreign page whose name was rebound to this machine is another.
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


def serve(models: Path, device: str, port: int) -> None:
    """Until it is stopped. Nothing is asked of another machine."""
    # To judge a foreign page, Streamlit would ask a server elsewhere for this machine's address.
    net_util.get_external_ip = lambda: None
    page = Path(__file__).with_name("app.py")
    cli.main(["run", str(page), *OPTIONS, f"--server.port={port}", "--", str(models), device], "streamlit")
