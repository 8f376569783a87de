"""The `p2pmesh` command itself: its global options and its commands."""

from __future__ import annotations

import logging
import os
import sys

import click

from p2pmesh.cli.chat.command import chat
from p2pmesh.cli.demo.command import demo, demo_peer, demo_server
from p2pmesh.cli.errors import Commands
from p2pmesh.cli.identity import identity
from p2pmesh.cli.options import option
from p2pmesh.cli.serve import serve
from p2pmesh.cli.simulate.command import simulate

_OFF = {"", "0", "false", "no", "off"}


@click.group(
    "p2pmesh",
    cls=Commands,
    context_settings={"auto_envvar_prefix": "P2PMESH", "help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="DEBUG=1 in the environment does the same as --debug.",
)
@click.version_option(package_name="p2pmesh")
@option("--debug", is_flag=True, help="Log everything that happens to stderr.")
def main(*, debug: bool) -> None:
    """Peer-to-peer meshes over WebRTC: try one, talk over one, serve one, simulate one."""
    _set_up_logging(debug=debug or os.environ.get("DEBUG", "").lower() not in _OFF)


for _command in (chat, demo, demo_peer, demo_server, identity, serve, simulate):
    main.add_command(_command)


def _set_up_logging(*, debug: bool) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if debug else logging.WARNING,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        force=True,
    )
    logging.getLogger("p2pmesh").setLevel(logging.DEBUG if debug else logging.NOTSET)
