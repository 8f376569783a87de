"""Session descriptions: what of a text is read, and the text that is written of it."""

from __future__ import annotations

import pytest
from aiortc.sdp import SessionDescription
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from p2pmesh.errors import RemoteProtocolError
from p2pmesh.wire.fields import MAX_CANDIDATES, MAX_FINGERPRINTS
from p2pmesh.wire.messages import Description, Fingerprint, IceCandidate
from p2pmesh.wire.sdp import fingerprints_of, read_candidate, read_sdp, write_candidate, write_sdp

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


FIREFOX = f"""v=0
o=mozilla...THIS_IS_SDPARTA-99.0 4215775240449105457 0 IN IP4 0.0.0.0
s=-
t=0 0
a=fingerprint:{FINGERPRINT}
a=group:BUNDLE 0
a=ice-options:trickle
a=msid-semantic:WMS *
m=application 46789 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 203.0.113.9
a=candidate:0 1 UDP 2122187007 2b6e0bbe-cfbf-4c2d-8c0d-7e2f3b1a9c55.local 46789 typ host
a=candidate:3 1 TCP 2105458943 2b6e0bbe-cfbf-4c2d-8c0d-7e2f3b1a9c55.local 9 typ host tcptype active
a=candidate:1 1 UDP 1685987327 203.0.113.9 46789 typ srflx raddr 0.0.0.0 rport 0
a=sendrecv
a=end-of-candidates
a=ice-pwd:a2f9c1d07cbd2b1c2f2b5a4d9e8f7061
a=ice-ufrag:1b5f8e2d
a=mid:0
a=setup:actpass
a=sctp-port:5000
a=max-message-size:1073741823
"""


def read(sdp: str) -> Description:
    return read_sdp(sdp.replace("\n", "\r\n"))


def clean(sdp: str) -> list[str]:
    written = write_sdp(read(sdp))
    assert written.endswith("\r\n")
    return written.splitlines()


def test_the_facts_of_an_offer_of_aiortc() -> None:
    assert read(AIORTC) == Description(
        ufrag="Ufr4",
        pwd="0123456789abcdefghijAB",
        fingerprints=(Fingerprint(value=b"\xa1" * 32),),
        role="actpass",
        candidates=(IceCandidate(address=bytes([10, 0, 0, 1]), port=50000),),
        max_message=65536,
    )
    assert read(AIORTC).is_offer
    assert not read(AIORTC.replace("actpass", "active")).is_offer


def test_the_facts_of_an_offer_of_firefox() -> None:
    assert read(FIREFOX) == Description(
        ufrag="1b5f8e2d",
        pwd="a2f9c1d07cbd2b1c2f2b5a4d9e8f7061",
        fingerprints=(Fingerprint(value=b"\xa1" * 32),),
        role="actpass",
        candidates=(
            IceCandidate(address=b"2b6e0bbe-cfbf-4c2d-8c0d-7e2f3b1a9c55.local", port=46789, priority=2122187007),
            IceCandidate(address=bytes([203, 0, 113, 9]), port=46789, kind="srflx", priority=1685987327),
        ),
        complete=False,  # those over TCP were left out
        max_message=1073741823,
    )


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
    assert candidates == ["a=candidate:2 1 udp 1677729535 203.0.113.7 54400 typ srflx"]
    assert "a=end-of-candidates" not in lines
    assert {"a=group:BUNDLE data", "a=mid:data", f"a=fingerprint:{FINGERPRINT}", "a=max-message-size:262144"} <= set(
        lines
    )


@pytest.mark.parametrize("sdp", [AIORTC, CHROME, FIREFOX])
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
        ("a=ice-ufrag:Ufr4", "a=ice-ufrag:Ufr", "malformed description.*ufrag"),
        ("a=ice-ufrag:Ufr4", "a=ice-ufrag:" + "U" * 257, "malformed description.*ufrag"),
        ("a=ice-pwd:0123456789abcdefghijAB", "a=ice-pwd:tooshort", "malformed description.*pwd"),
        ("a=ice-pwd:0123456789abcdefghijAB", "a=ice-pwd:0123456789 abcdefghijAB", "malformed description.*pwd"),
        ("a=setup:actpass", "a=setup:holdconn", "malformed description.*role"),
        ("a=mid:0", "a=mid:" + "0" * 33, "malformed description.*mid"),
        ("a=mid:0", "a=mid:0 1", "malformed description.*mid"),
        ("a=sctp-port:5000", "a=sctp-port:-1", "malformed sctp-port"),
        ("a=sctp-port:5000", "a=sctp-port:65536", "malformed description.*sctpPort"),
        ("a=max-message-size:65536", "a=max-message-size:x", "malformed max-message-size"),
        (f"a=fingerprint:{FINGERPRINT}\n", "", "no fingerprint"),
        (f"a=fingerprint:{FINGERPRINT}", "a=fingerprint:sha-256 A1", "malformed fingerprint"),
        ("a=fingerprint:sha-256", "a=fingerprint:sha-1", "malformed fingerprint"),
        ("a=fingerprint:sha-256", "a=fingerprint:sha-3", "malformed fingerprint"),
        ("a=setup:actpass\n", f"a=setup:actpass\n a=fingerprint:{FINGERPRINT}\n", "malformed fingerprint"),
        ("a=setup:actpass\n", f"a=setup:actpass\x0ba=fingerprint:{FINGERPRINT}\n", "no text"),
        ("a=setup:actpass\n", "a=setup:\ud83dactpass\n", "no text"),
    ],
)
def test_what_is_no_description_of_one_data_channel_is_refused(line: str, instead: str, complaint: str) -> None:
    assert line in AIORTC
    with pytest.raises(RemoteProtocolError, match=complaint):
        clean(AIORTC.replace(line, instead))


def test_nothing_at_all_is_refused() -> None:
    for sdp in ("", "v=0\r\n"):
        with pytest.raises(RemoteProtocolError, match="no data channel"):
            read_sdp(sdp)


def test_fingerprints_are_all_lines_normalised_and_each_once() -> None:
    more = f"a=fingerprint:SHA-256 {FINGERPRINT.partition(' ')[2].lower()} \na=fingerprint:sha-1 {'0a:' * 19}0B\n"
    assert fingerprints_of(read(more + AIORTC)) == (f"sha-1 {'0A:' * 19}0B", FINGERPRINT)


def test_the_number_of_fingerprints_is_bounded() -> None:
    lines = [f"a=fingerprint:sha-1 {f'{n:02X}:' * 19}00\n" for n in range(MAX_FINGERPRINTS)]
    assert len(read("".join(lines[1:]) + AIORTC).fingerprints) == MAX_FINGERPRINTS
    with pytest.raises(RemoteProtocolError, match="more than"):
        read("".join(lines) + AIORTC)


def test_what_is_not_needed_is_left_out() -> None:
    more = "a=rtpmap:111 opus/48000/2\na=identity:x\na=ssrc:1 cname:x\na=x-new\nx=y\nb=AS:30\n"
    assert clean(AIORTC + more) == clean(AIORTC)


def test_what_may_be_left_out_has_a_default() -> None:
    facts = read(AIORTC.replace("a=sctp-port:5000\n", "").replace("a=max-message-size:65536\n", ""))
    assert (facts.sctp_port, facts.max_message) == (5000, 65536)
    assert read(AIORTC.replace("size:65536", "size:9999999999")).max_message == (1 << 32) - 1


def test_a_lite_peer_is_known_as_one() -> None:
    assert "a=ice-lite" in clean(AIORTC.replace("a=group", "a=ice-lite\na=group"))
    assert "a=ice-lite" not in clean(AIORTC)


def test_of_a_flood_of_candidates_the_first_are_taken_and_the_list_is_not_called_complete() -> None:
    flood = "".join(f"a=candidate:{n} 1 udp {n} 10.0.{n // 250}.{n % 250 + 1} 9 typ host\n" for n in range(500))
    lines = clean(AIORTC + flood)
    candidates = [line for line in lines if line.startswith("a=candidate")]
    assert len(candidates) == MAX_CANDIDATES
    assert candidates[:2] == [f"a=candidate:{HOST}", "a=candidate:2 1 udp 0 10.0.0.1 9 typ host"]
    assert "a=end-of-candidates" not in lines


def test_a_list_without_an_address_is_not_called_complete() -> None:
    assert "a=end-of-candidates" not in clean(AIORTC.replace(f"a=candidate:{HOST}\n", ""))


@pytest.mark.parametrize(
    "text",
    [
        "1 1 tcp 1 10.0.0.1 9 typ host tcptype passive",
        "1 1 udp 1 short.local 9 typ host",
        "1 1 udp 1 " + "a" * 59 + ".local 9 typ host",
        "1 1 udp 1 10.0.0.1 0 typ host",
        "1 1 udp 1 10.0.0.1 70000 typ host",
        "1 1 udp 4294967296 10.0.0.1 9 typ host",
        "1 1 udp 1 999.0.0.1 9 typ host",
        "1 1 udp 1 10.0.0.1 9",
        "1 2 udp 1 10.0.0.1 9 typ host",
        "! 1 udp 1 10.0.0.1 9 typ host",
        "1" * 65 + " 1 udp 1 10.0.0.1 9 typ host",
        "1 1 udp 1 10.0.0.1 9 typ host\r\na=ice-lite",
        "",
    ],
)
def test_useless_candidates_are_left_out(text: str) -> None:
    assert read_candidate(text) is None


@pytest.mark.parametrize(
    "address", [b"\xe0\0\0\1", b"\xff\2" + bytes(13) + b"\1", bytes(4), bytes(16), b"0" * 11 + b".local", bytes(5)]
)
def test_addresses_of_no_use_are_not_written(address: bytes) -> None:
    useless = IceCandidate(address=address, port=9)
    assert write_candidate(useless) is None
    facts = structs.replace(read(AIORTC), candidates=(*read(AIORTC).candidates, useless))
    assert write_sdp(facts) == write_sdp(read(AIORTC)).replace("a=end-of-candidates\r\n", "")


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("a=candidate:9 1 UDP 5 FD00::2 9 typ HOST generation 0", "1 1 udp 5 fd00::2 9 typ host"),
        ("candidate:9 1 udp 5 10.0.0.1 65535 typ relay raddr 1.2.3.4 rport 5", "1 1 udp 5 10.0.0.1 65535 typ relay"),
        ("9 1 udp 5 10.0.0.1 1 typ prflx raddr 0.0.0.0 rport 0", "1 1 udp 5 10.0.0.1 1 typ srflx"),
        (" 9 1 udp 4294967295 10.0.0.1 1 typ srflx ", "1 1 udp 4294967295 10.0.0.1 1 typ srflx"),
        ("9 1 udp 2130706431 10.0.0.1 1 typ host", "1 1 udp 2130706431 10.0.0.1 1 typ host"),
    ],
)
def test_candidates_are_written_anew(text: str, written: str) -> None:
    candidate = read_candidate(text)
    assert candidate is not None
    assert write_candidate(candidate) == written


def test_a_priority_that_follows_from_the_kind_is_none_of_the_facts() -> None:
    for kind, priority in (("host", 2130706431), ("srflx", 1694498815), ("relay", 16777215)):
        candidate = read_candidate(f"9 1 udp {priority} 10.0.0.1 1 typ {kind}")
        assert candidate is not None
        assert (candidate.kind, candidate.priority) == (kind, None)
        assert (write_candidate(candidate) or "").split()[3] == str(priority)


ICE_CHARACTERS = "abcXYZ019+/"
NAMES = st.text(ICE_CHARACTERS, min_size=4, max_size=40)
ADDRESSES = st.ip_addresses().filter(lambda ip: not ip.is_multicast and not ip.is_unspecified).map(lambda ip: ip.packed)
DESCRIPTIONS = st.builds(
    Description,
    ufrag=NAMES,
    pwd=st.text(ICE_CHARACTERS, min_size=22, max_size=40),
    fingerprints=st.lists(
        st.builds(Fingerprint, value=st.binary(min_size=32, max_size=32)), min_size=1, max_size=4, unique=True
    ).map(tuple),
    role=st.sampled_from(["actpass", "active", "passive"]),
    candidates=st.lists(
        st.builds(
            IceCandidate,
            address=ADDRESSES,
            port=st.integers(1, 65_535),
            kind=st.sampled_from(["host", "srflx", "relay"]),
            priority=st.none() | st.integers(0, 1000),
        ),
        min_size=1,
        max_size=4,
    ).map(tuple),
    complete=st.booleans(),
    max_message=st.integers(0, (1 << 32) - 1),
    mid=st.text("ab09!~", min_size=1, max_size=32),
    sctp_port=st.integers(0, 65_535),
    lite=st.booleans(),
)


@given(DESCRIPTIONS)
def test_what_is_written_is_read_as_the_same_facts(facts: Description) -> None:
    read_back = read_sdp(write_sdp(facts))
    assert set(read_back.fingerprints) == set(facts.fingerprints)
    assert structs.replace(read_back, fingerprints=facts.fingerprints) == facts


@given(st.text(max_size=300), st.integers(0, 700))
def test_no_text_raises_anything_but_a_protocol_error(text: str, at: int) -> None:
    sdp = FIREFOX[:at] + text + FIREFOX[at:]
    try:
        facts = read_sdp(sdp)
    except RemoteProtocolError:
        return
    assert read_sdp(write_sdp(facts)).ufrag == facts.ufrag
