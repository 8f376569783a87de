"""What of a peer's session description reaches aiortc, and what does not."""

from __future__ import annotations

import pytest
from aiortc.sdp import SessionDescription

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.links.webrtc.sdp_filter import clean_candidate, clean_description
from p2pmesh.wire.messages import Signal

FINGERPRINT = "sha-256 " + ":".join(["A1"] * 32)
HOST = "1 1 udp 2130706431 10.0.0.1 50000 typ host"

AIORTC = f"""v=0
o=- 3968000000 3968000000 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0
a=msid-semantic:WMS *
m=application 50000 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 10.0.0.1
a=mid:0
a=sctp-port:5000
a=max-message-size:65536
a=candidate:{HOST}
a=end-of-candidates
a=ice-ufrag:Ufr4
a=ice-pwd:0123456789abcdefghijAB
a=fingerprint:{FINGERPRINT}
a=setup:actpass
"""
CHROME = f"""v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE data
a=extmap-allow-mixed
a=msid-semantic: WMS
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=candidate:3988 1 udp 2113937151 0f9a6d5c-7c1f-4a34-a4a3-0123456789ab.local 54400 typ host generation 0 network-cost 50
a=candidate:842 1 udp 1677729535 203.0.113.7 54400 typ srflx raddr 0.0.0.0 rport 0 generation 0 network-cost 999
a=candidate:77 1 tcp 1518280447 10.0.0.1 9 typ host tcptype active generation 0
a=ice-ufrag:4ZcD
a=ice-pwd:2/1muCWoOi3uLifh0NuRHlWC
a=ice-options:trickle
a=fingerprint:{FINGERPRINT.lower()}
a=setup:actpass
a=mid:data
a=sctp-port:5000
a=max-message-size:262144
"""


def clean(sdp: str) -> list[str]:
    cleaned = clean_description(Signal(type="offer", sdp=sdp.replace("\n", "\r\n")))
    assert cleaned.endswith("\r\n")
    return cleaned.splitlines()


def test_what_aiortc_offers_stays_what_it_was() -> None:
    assert clean(AIORTC) == [
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=sctp-port:5000",
        "a=max-message-size:65536",
        f"a=candidate:{HOST}",
        "a=end-of-candidates",
        "a=ice-ufrag:Ufr4",
        "a=ice-pwd:0123456789abcdefghijAB",
        f"a=fingerprint:{FINGERPRINT}",
        "a=setup:actpass",
    ]


def test_of_what_a_browser_offers_the_address_that_can_be_used_is_left_and_more_may_come() -> None:
    lines = clean(CHROME)
    candidates = [line for line in lines if line.startswith("a=candidate")]
    assert candidates == ["a=candidate:842 1 udp 1677729535 203.0.113.7 54400 typ srflx"]
    assert "a=end-of-candidates" not in lines
    assert {"a=group:BUNDLE data", "a=mid:data", f"a=fingerprint:{FINGERPRINT}", "a=max-message-size:262144"} <= set(
        lines
    )


@pytest.mark.parametrize("sdp", [AIORTC, CHROME])
def test_aiortc_reads_what_is_written(sdp: str) -> None:
    description = SessionDescription.parse("\r\n".join(clean(sdp)) + "\r\n")
    (media,) = description.media
    assert (media.kind, media.profile, media.fmt) == ("application", "UDP/DTLS/SCTP", ["webrtc-datachannel"])
    assert len(media.ice_candidates) == 1
    assert media.dtls is not None
    assert [fingerprint.value for fingerprint in media.dtls.fingerprints] == [FINGERPRINT.partition(" ")[2]]


@pytest.mark.parametrize(
    ("line", "instead", "complaint"),
    [
        ("m=application", "b=AS:30\nm=audio 9 UDP/TLS/RTP/SAVPF 111\nm=application", "more than one"),
        ("a=setup:actpass\n", "a=setup:actpass\nm=audio 9 UDP/TLS/RTP/SAVPF 111\na=mid:1\n", "more than one"),
        ("a=setup:actpass\n", "a=setup:actpass\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\n", "more than one"),
        ("m=application 50000 UDP/DTLS/SCTP webrtc-datachannel", "m=application 9 DTLS/SCTP 5000", "more than one"),
        ("m=application 50000 UDP/DTLS/SCTP webrtc-datachannel\n", "", "no data channel"),
        ("a=ice-ufrag:Ufr4\n", "", "no ice-ufrag"),
        ("a=ice-pwd:0123456789abcdefghijAB\n", "", "no ice-pwd"),
        ("a=setup:actpass\n", "", "no setup"),
        ("a=mid:0\n", "", "no mid"),
        ("a=ice-ufrag:Ufr4", "a=ice-ufrag:Ufr", "malformed ice-ufrag"),
        ("a=ice-ufrag:Ufr4", "a=ice-ufrag:" + "U" * 257, "malformed ice-ufrag"),
        ("a=ice-pwd:0123456789abcdefghijAB", "a=ice-pwd:tooshort", "malformed ice-pwd"),
        ("a=ice-pwd:0123456789abcdefghijAB", "a=ice-pwd:0123456789 abcdefghijAB", "malformed ice-pwd"),
        ("a=setup:actpass", "a=setup:holdconn", "malformed setup"),
        ("a=mid:0", "a=mid:" + "0" * 33, "malformed mid"),
        ("a=mid:0", "a=mid:0 1", "malformed mid"),
        ("a=sctp-port:5000", "a=sctp-port:-1", "malformed sctp-port"),
        ("a=max-message-size:65536", "a=max-message-size:x", "malformed max-message-size"),
        (f"a=fingerprint:{FINGERPRINT}\n", "", "no fingerprint"),
        (f"a=fingerprint:{FINGERPRINT}", "a=fingerprint:sha-256 A1", "malformed fingerprint"),
    ],
)
def test_what_is_no_description_of_one_data_channel_is_refused(line: str, instead: str, complaint: str) -> None:
    assert line in AIORTC
    with pytest.raises(RemoteProtocolError, match=complaint):
        clean(AIORTC.replace(line, instead))


def test_nothing_at_all_is_refused() -> None:
    for signal in (Signal(type="offer"), Signal(type="offer", sdp=""), Signal(type="answer", sdp="v=0\r\n")):
        with pytest.raises(RemoteProtocolError, match="no data channel"):
            clean_description(signal)


def test_what_is_not_needed_is_left_out() -> None:
    more = "a=rtpmap:111 opus/48000/2\na=identity:x\na=ssrc:1 cname:x\na=x-new\nx=y\nb=AS:30\n"
    assert clean(AIORTC + more) == clean(AIORTC)


def test_what_may_be_left_out_has_a_default() -> None:
    lines = clean(AIORTC.replace("a=sctp-port:5000\n", "").replace("a=max-message-size:65536\n", ""))
    assert "a=sctp-port:5000" in lines
    assert not [line for line in lines if "max-message-size" in line]


def test_a_lite_peer_is_known_as_one() -> None:
    assert "a=ice-lite" in clean(AIORTC.replace("a=group", "a=ice-lite\na=group"))
    assert "a=ice-lite" not in clean(AIORTC)


def test_of_a_flood_of_candidates_the_first_are_taken_and_the_list_is_not_called_complete() -> None:
    flood = "".join(f"a=candidate:{n} 1 udp {n} 10.0.{n // 250}.{n % 250 + 1} 9 typ host\n" for n in range(500))
    lines = clean(AIORTC + flood)
    candidates = [line for line in lines if line.startswith("a=candidate")]
    assert 20 <= len(candidates) <= 64
    assert candidates[:2] == [f"a=candidate:{HOST}", "a=candidate:0 1 udp 0 10.0.0.1 9 typ host"]
    assert "a=end-of-candidates" not in lines


def test_a_list_without_an_address_is_not_called_complete() -> None:
    assert "a=end-of-candidates" not in clean(AIORTC.replace(f"a=candidate:{HOST}\n", ""))


@pytest.mark.parametrize(
    "text",
    [
        "1 1 tcp 1 10.0.0.1 9 typ host tcptype passive",
        "1 1 udp 1 b4c1.local 9 typ host",
        "1 1 udp 1 10.0.0.1 0 typ host",
        "1 1 udp 1 10.0.0.1 70000 typ host",
        "1 1 udp 4294967296 10.0.0.1 9 typ host",
        "1 1 udp 1 224.0.0.1 9 typ host",
        "1 1 udp 1 ff02::1 9 typ host",
        "1 1 udp 1 0.0.0.0 9 typ host",
        "1 1 udp 1 :: 9 typ host",
        "1 1 udp 1 999.0.0.1 9 typ host",
        "1 1 udp 1 10.0.0.1 9 typ prflx",
        "1 1 udp 1 10.0.0.1 9",
        "1 2 udp 1 10.0.0.1 9 typ host",
        "! 1 udp 1 10.0.0.1 9 typ host",
        "1" * 65 + " 1 udp 1 10.0.0.1 9 typ host",
        "1 1 udp 1 10.0.0.1 9 typ host\r\na=ice-lite",
        "",
    ],
)
def test_useless_candidates_are_left_out(text: str) -> None:
    assert clean_candidate(text) is None


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a=candidate:9 1 UDP 5 FD00::2 9 typ HOST generation 0", "9 1 udp 5 fd00::2 9 typ host"),
        ("candidate:9 1 udp 5 10.0.0.1 65535 typ relay raddr 1.2.3.4 rport 5", "9 1 udp 5 10.0.0.1 65535 typ relay"),
        (" 9 1 udp 4294967295 10.0.0.1 1 typ srflx ", "9 1 udp 4294967295 10.0.0.1 1 typ srflx"),
    ],
)
def test_candidates_are_written_anew(text: str, written: str) -> None:
    assert clean_candidate(text) == written
