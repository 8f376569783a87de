"""From URLs, configs and objects to transports, with kinds that anybody can add."""

import logging
from importlib.metadata import EntryPoint

import pytest

from p2pmesh.errors import ConfigError
from p2pmesh.transports import registry
from p2pmesh.transports.memory import MemoryTransport
from p2pmesh.transports.registry import Registry, TransportKind, make_transport, make_transports
from p2pmesh.transports.transport import TransportConfig
from p2pmesh.transports.websocket import WebSocketTransport

KIND = TransportKind(MemoryTransport, schemes=("pigeon",))
NOT_A_KIND = MemoryTransport


def entry(name: str, value: str) -> EntryPoint:
    return EntryPoint(name, value, registry.GROUP)


PIGEON = entry("pigeon", f"{__name__}:KIND")
MISSING = entry("missing", "there_is_no_such_module:KIND")
WITHOUT_ATTRIBUTE = entry("without", "json:KIND")
WRONG = entry("wrong", f"{__name__}:NOT_A_KIND")


class TestInstalled:
    def test_names_and_schemes_of_the_installed_kinds(self):
        assert {"memory", "websocket"} <= set(registry.names())
        assert {"memory", "ws", "wss"} <= set(registry.schemes())

    @pytest.mark.parametrize(
        ("url", "kind"),
        [
            ("ws://localhost:8080", WebSocketTransport),
            ("WSS://example.org/mesh", WebSocketTransport),
            ("memory://lobby", MemoryTransport),
        ],
    )
    def test_a_url_is_made_by_its_scheme(self, url, kind):
        assert isinstance(make_transport(url), kind)

    def test_a_config_is_made_by_its_name(self):
        transport = make_transport(TransportConfig("websocket", options={"url": "ws://u:p@h/", "max_message": 10}))
        assert isinstance(transport, WebSocketTransport)
        assert transport.name == "ws://h/"

    def test_a_configs_id_is_the_transports_name(self):
        assert make_transport(TransportConfig("memory", id="first")).name == "first"

    def test_an_object_is_taken_as_it_is(self):
        transport = MemoryTransport()
        assert make_transport(transport) is transport


class TestMistakes:
    @pytest.mark.parametrize(
        ("url", "hint"),
        [
            ("http://localhost:8080", r" \(did you mean ws://\?\)"),
            ("https://localhost", r" \(did you mean wss://\?\)"),
            ("localhost:8080", r" \(did you mean ws://localhost:8080\?\)"),
            ("ftp://x", ""),
            ("", ""),
        ],
    )
    def test_an_unknown_scheme_lists_the_known_ones(self, url, hint):
        with pytest.raises(
            ConfigError, match=rf"unknown transport '{url}': the schemes are .*memory, .*ws, wss{hint}$"
        ):
            make_transport(url)

    def test_secrets_in_a_wrong_url_are_not_repeated(self):
        with pytest.raises(ConfigError, match="unknown transport 'http://host/'"):
            make_transport("http://user:secret@host/?token=secret")

    def test_an_unknown_name_lists_the_known_ones(self):
        with pytest.raises(ConfigError, match=r"unknown transport 'sockets': the names are .*memory, .*websocket"):
            make_transport(TransportConfig("sockets"))

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({}, "missing a required argument: 'url'"),
            ({"url": "ws://x", "uri": 1}, "unexpected keyword argument 'uri'"),
        ],
    )
    def test_options_that_dont_fit_are_named(self, options, complaint):
        with pytest.raises(ConfigError, match=complaint):
            make_transport(TransportConfig("websocket", options=options))

    @pytest.mark.parametrize("like", [None, 5, b"ws://x", ["ws://x"]])
    def test_what_is_no_transport_is_refused(self, like):
        with pytest.raises(ConfigError, match="a transport is a URL"):
            make_transport(like)


class TestSeveral:
    def test_they_keep_their_order(self):
        names = [transport.name for transport in make_transports(["ws://b", "memory://a", "ws://a"])]
        assert names == ["ws://b", "memory://a", "ws://a"]

    def test_two_of_one_name_are_refused(self):
        with pytest.raises(ConfigError, match="two transports are named 'ws://a'"):
            make_transports(["ws://a?token=1", "ws://a?token=2"])

    def test_an_id_tells_them_apart(self):
        second = TransportConfig("websocket", id="second", options={"url": "ws://a?token=2"})
        assert [transport.name for transport in make_transports(["ws://a?token=1", second])] == ["ws://a", "second"]


class TestOthersKinds:
    def test_an_entry_point_adds_a_kind(self):
        kinds = Registry([PIGEON])
        assert kinds.names() == ("pigeon",)
        with pytest.raises(ConfigError, match="is no address in memory"):
            kinds.make("pigeon://coop")
        assert isinstance(kinds.make(TransportConfig("pigeon")), MemoryTransport)

    @pytest.mark.parametrize("broken", [MISSING, WITHOUT_ATTRIBUTE, WRONG], ids=lambda found: found.name)
    def test_a_broken_one_spoils_nothing_until_it_is_asked_for(self, broken, caplog):
        kinds = Registry([broken, PIGEON])
        with caplog.at_level(logging.WARNING):
            assert kinds.schemes() == ("pigeon",)
        assert broken.name in caplog.text
        with pytest.raises(ConfigError, match=broken.name):
            kinds.make(TransportConfig(broken.name))

    def test_a_program_registers_its_own(self):
        kinds = Registry([PIGEON])
        kinds.register("mine", lambda url: MemoryTransport(name=url), schemes=["mine", "mines"])
        assert kinds.names() == ("mine", "pigeon")
        assert kinds.make("mines://x").name == "mines://x"

    def test_a_name_is_registered_once(self):
        with pytest.raises(ConfigError, match="a transport named 'pigeon'"):
            Registry([PIGEON]).register("pigeon", MemoryTransport)

    def test_a_scheme_is_registered_once(self):
        with pytest.raises(ConfigError, match="the URL scheme 'pigeon' belongs to the transport 'pigeon'"):
            Registry([PIGEON]).register("other", MemoryTransport, schemes=["other", "pigeon"])
