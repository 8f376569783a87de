"""The command line: `p2pmesh` and its commands.

What a command needs beyond click is imported when it runs, so that `--help` answers at once.
"""

from p2pmesh.cli.main import main

__all__ = ["main"]
