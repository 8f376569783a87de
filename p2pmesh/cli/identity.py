"""`p2pmesh id`: the peer id of an identity file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2pmesh.cli.options import json_option


@click.command("id", short_help="Show a peer id, and make identity files.")
@click.argument("path", required=False, type=click.Path(path_type=Path))
@json_option
def identity(path: Path | None, *, as_json: bool) -> None:
    """Show the peer id of the identity file PATH, making it (mode 0600) if it is missing.

    Without PATH: a new identity that is kept nowhere.
    """
    from p2pmesh.identity import Identity

    created = path is None or not path.exists()
    who = Identity.generate() if path is None else Identity.load_or_create(path)
    facts = {"peer_id": who.peer_id, "public_key": who.public_key.hex(), "path": None if path is None else str(path)}
    if as_json:
        click.echo(json.dumps({**facts, "created": created}))
        return
    click.echo(f"peer id     {who.peer_id}")
    click.echo(f"public key  {who.public_key.hex()}")
    kept = "nowhere" if path is None else f"{path} (new)" if created else path
    click.echo(f"kept in     {kept}")
