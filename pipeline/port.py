"""The option --port of the commands that serve a web page."""

import socket

import click

from pipeline.options import Command


def port_option(default: int) -> Command:
    return click.option(
        "--port", type=click.IntRange(1, 65535), default=default, show_default=True, help="Port on 127.0.0.1."
    )


def check_free(port: int) -> None:
    """Raise ConfigError if the port is in use, because a browser would show the page of the other program."""
    from leanresnet.errors import ConfigError

    with socket.socket() as probe:
        # A server sets this option too, so closed connections of an earlier server do not block the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(f"--port = {port}: {error.strerror}, expected: one that no program uses") from error
