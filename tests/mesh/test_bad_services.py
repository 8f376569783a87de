"""What `open_mesh` makes of servers that are none, and `serve` of a good certificate."""

import json
import random
import signal
import ssl
import subprocess
import sys

import pytest
import trio

from p2pmesh import TransportUnavailable, open_mesh
from p2pmesh.simulation.full.network import SimNetwork
from p2pmesh.transports.websocket import WebSocketTransport
from tests.harness.cluster import Cluster
from tests.server.test_app import certificate  # noqa: F401  # a fixture
from tests.transports.test_websocket import tcp_server, websocket_server


async def close_at_once(stream):
    await stream.aclose()


async def close_after_the_handshake(socket):
    await socket.aclose()


async def send_garbage(socket):
    await socket.send_message("<html>not what you think</html>")
    await socket.get_message()
    await trio.sleep_forever()


BAD = {
    "closes at once": (tcp_server, close_at_once),
    "closes after the handshake": (websocket_server, close_after_the_handshake),
    "sends garbage": (websocket_server, send_garbage),
}


@pytest.mark.parametrize(("server", "handler"), BAD.values(), ids=BAD.keys())
async def test_open_mesh_says_what_is_wrong_with_the_service(server, handler):
    async with server(handler) as url, Cluster() as world:
        with trio.fail_after(10), pytest.raises(TransportUnavailable) as caught:
            async with world.peer(1, transports=[WebSocketTransport(url)]):
                pytest.fail("joined")
        assert url in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_serve_with_a_certificate_serves_wss(certificate):  # noqa: F811
    cert, key = map(str, certificate)
    command = [sys.executable, "-m", "p2pmesh", "serve", "--port", "0", "--json", "--cert", cert, "--key", key]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        with trio.fail_after(20):
            url = json.loads(await process.stdout.receive_some())["url"]
            assert url.startswith("wss://")
            trust = ssl.create_default_context(cafile=cert)
            transport = WebSocketTransport(url, ssl_context=trust)
            async with SimNetwork(random.Random(1)) as network:
                async with open_mesh(transport, dialer=network.dialer("a" * 40)) as mesh:
                    assert mesh.peer_count == 0
    finally:
        process.send_signal(signal.SIGTERM)
        with trio.move_on_after(5, shield=True):
            await process.wait()
