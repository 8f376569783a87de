"""`p2pmesh chat`: talk over a mesh, from a terminal or a pipe."""

from __future__ import annotations

from pathlib import Path

import click

from p2pmesh.cli.options import DEFAULT_URL, Number, option


@click.command(
    short_help="Talk to everybody in a room.",
    epilog="""Commands while chatting: /peers, /msg NAME TEXT, /name NAME, /help, /quit.

    Over a pipe each line is a message, and the end of input leaves once all have arrived:
    date | p2pmesh chat --room ops""",
)
@click.argument("url", envvar="P2PMESH_URL", default=DEFAULT_URL)
@option("--room", default="chat", help="Where to meet: rooms of one server don't hear each other.")
@option("--name", default=None, help="What others see. Default: the first digits of your peer id.")
@option(
    "--identity",
    "identity_path",
    type=click.Path(dir_okay=False, path_type=Path),
    default=None,
    help="File to keep your peer id in, made if missing. Default: a new id each time.",
)
@option("--max-peers", type=click.IntRange(min=1), default=None, help="Most links to hold. Default: the library's, 3.")
@option("--token", default=None, help="Join token, if the server asks for one.")
@option("--ice-server", "ice_servers", multiple=True, metavar="URL", help="stun:HOST:PORT to get through NATs.")
@option(
    "--wait",
    type=Number(min=0),
    default=10.0,
    help="Over a pipe: seconds that the first message waits for somebody to be there.",
)
def chat(
    url: str,
    *,
    room: str,
    name: str | None,
    identity_path: Path | None,
    max_peers: int | None,
    token: str | None,
    ice_servers: tuple[str, ...],
    wait: float,
) -> None:
    """Chat with everybody in a room of the mesh at URL (default ws://localhost:8080; environment: P2PMESH_URL)."""
    import trio

    from p2pmesh.cli.chat.session import Chat
    from p2pmesh.cli.chat.terminal import open_terminal
    from p2pmesh.config import IceServer, MeshConfig
    from p2pmesh.identity import Identity
    from p2pmesh.mesh import open_mesh
    from p2pmesh.transports.address import public_url

    async def run() -> int:
        identity = Identity.generate() if identity_path is None else Identity.load_or_create(identity_path)
        async with (
            open_terminal() as terminal,
            open_mesh(
                url,
                identity=identity,
                room=room,
                max_peers=max_peers,
                ice_servers=[IceServer(urls=server) for server in ice_servers],
                config=MeshConfig(join_token=token),
            ) as mesh,
        ):
            session = Chat(mesh, name or "", terminal)
            if terminal.interactive:
                terminal.show(
                    f"* in {room!r} at {public_url(url)} as {mesh.peer_id}: /help shows the commands", dim=True
                )
            await session.run(patience=wait)
        return 0 if terminal.interactive else session.failed

    failed = trio.run(run)
    if failed:
        raise click.ClickException(f"{failed} of the messages did not arrive")
