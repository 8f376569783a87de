"""What a signaling server logs: never a token, nor anything of what it relays."""

import json
import logging
from contextlib import suppress

import pytest
from trio_websocket import ConnectionClosed

from p2pmesh.server.app import open_signaling_server
from p2pmesh.server.config import ServerConfig
from tests.server.test_app import A, B, legacy

MARK = "s3cr3t"
SAID = {
    "no JSON": MARK,
    "no object": json.dumps([MARK]),
    "an odd type": json.dumps({"type": MARK}),
    "a wrong token": json.dumps({"type": "join", "peerId": B, "token": f"another {MARK}"}),
    "a token that is none": json.dumps({"type": "join", "peerId": B, "token": [MARK]}),
    "an id that is none": json.dumps({"type": "join", "peerId": MARK, "token": MARK}),
    "bytes": MARK.encode() + b"\xff",
    "a signal to nobody": json.dumps({"type": "signal", "to": B, "signal": {"type": "offer", "sdp": MARK}}),
    "a signal to somebody": json.dumps({"type": "signal", "to": A, "signal": {"type": "offer", "sdp": MARK}}),
    "a signal that is none": json.dumps({"type": "signal", "to": {MARK: 1}, "signal": MARK}),
    "much": json.dumps({"type": MARK * 500_000}),
}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID.keys())
async def test_no_server_logs_what_its_clients_say(caplog: pytest.LogCaptureFixture, said: str | bytes) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        open_signaling_server(config=ServerConfig(join_token=MARK)) as server,
        legacy(server) as first,
        legacy(server) as second,
    ):
        await first.send(type="join", peerId=A, token=MARK)
        if '"signal"' in str(said):  # of one that was let in
            await second.send(type="join", peerId="c" * 40, token=MARK)
        with suppress(ConnectionClosed):
            await second.connection.send_message(said)
        await second.connection.aclose()
    told = [caplog.text, *(repr(record.args) for record in caplog.records)]
    assert caplog.records
    assert not any(MARK in text for text in told)
