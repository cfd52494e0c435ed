"""The port on which a command serves a page."""

import socket

import click

from pipeline.options import Command


def port_option(default: int) -> Command:
    return click.option("--port", type=click.IntRange(1, 65535), default=default, show_default=True)


def check_free(port: int) -> None:
    """Raises ConfigError where nothing can be served on it; another program's page would be taken for ours."""
    from leanresnet.errors import ConfigError

    with socket.socket() as probe:
        # As servers do: the connections of one that has ended are in nobody's way.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port = {port}: {error.strerror}, expected: one that no program uses") from error
