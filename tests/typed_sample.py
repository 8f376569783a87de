"""What applications write, for type checkers alone: mypy reads it with all tests, pyright in the `types` session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from p2pmesh import (
    Delivered,
    Dht,
    Event,
    Failed,
    JsonValue,
    Mesh,
    MeshConfig,
    Payload,
    PayloadLike,
    PeerConnected,
    Subscription,
    TransportConfig,
    open_mesh,
)

Last = Payload | None


async def sends(mesh: Mesh, counts: dict[str, int], rows: list[list[float]], read_only: Mapping[str, str]) -> int:
    """Every container of JSON is a payload, however it is typed."""
    await mesh.broadcast("t", counts)
    await mesh.broadcast("t", {"rows": rows, "pair": (1, "two"), "none": None})
    await mesh.send(mesh.peer_id, read_only)
    await mesh.send(mesh.peer_id, bytearray(b"bytes"))
    nested: Sequence[Mapping[str, Sequence[int]]] = [{"a": range(3)}]
    dht: Dht = mesh.dht
    await dht.put("k", nested)
    anything: PayloadLike = counts
    receipt = await mesh.broadcast("t", anything)
    match await receipt.settled():
        case Delivered(reached=reached):
            return reached
        case Failed(reason=reason):
            return len(reason)


async def receives(mesh: Mesh, stream: Subscription[Event]) -> Last:
    """What comes is concrete, and can be sent on."""
    last: Payload | None = None
    async for event in stream:
        if isinstance(event, PeerConnected):
            continue
    async with mesh.subscribe("t") as messages:
        async for message in messages:
            payload = message.payload
            if isinstance(payload, dict):
                value: JsonValue = payload["key"]
                await mesh.broadcast("t", value)
            await mesh.send(message.origin, payload)
            last = payload
    return last


async def opens() -> None:
    """Options take what is at hand."""
    urls = ["ws://one", "ws://two"]
    peers = ("a" * 40,)
    service = TransportConfig("websocket", options={"url": "ws://here", "ping_after": 5})
    async with open_mesh(*urls, service, bootstrap_peers=peers, config=MeshConfig(max_peers=5), max_peers=None) as mesh:
        await mesh.leave()
