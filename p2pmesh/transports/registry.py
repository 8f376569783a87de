"""Which kinds of transport there are, and how a URL, a config or an object becomes a transport.

Kinds come from entry points of the group `p2pmesh.transports`, ours included, so any installed package can add one:

    [project.entry-points."p2pmesh.transports"]
    pigeon = "pigeons:KIND"          # KIND = TransportKind(PigeonTransport, schemes=("pigeon",))

or from `register`, for a kind that lives in the program itself.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Final

from attrs import frozen

from p2pmesh.checks import shown, text
from p2pmesh.errors import ConfigError
from p2pmesh.transports.address import public_url
from p2pmesh.transports.transport import Transport, TransportConfig, TransportLike

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

logger: Final = logging.getLogger(__name__)

GROUP = "p2pmesh.transports"

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")


@frozen
class TransportKind:
    """A kind of transport: what an entry point refers to."""

    make: Callable[..., Transport]
    """Called with the options of a `TransportConfig`, and its id, if any, as `name`; or with a `url` alone."""
    schemes: tuple[str, ...] = ()
    """The URL schemes it answers to, in lower case."""


class Registry:
    """Transport kinds by name. Most programs need only the module's own: `make_transport` and its neighbours."""

    def __init__(self, found: Iterable[EntryPoint] = ()) -> None:
        """Made of entry points, which are not looked for before one is needed."""
        self._kinds: dict[str, TransportKind] = {}
        self._to_find = found

    @cached_property
    def _found(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in self._to_find}

    def register(self, name: str, make: Callable[..., Transport], *, schemes: Iterable[str] = ()) -> None:
        """Add a kind under a name and URL schemes that are not taken.

        Raises:
          ConfigError: if the name or a scheme is taken, or none.
        """
        text("the name of a transport", name)
        if not callable(make) or isinstance(schemes, str):
            raise ConfigError("a transport is registered by a function that makes one, and a list of URL schemes")
        kind = TransportKind(make, tuple(text("a URL scheme", scheme) for scheme in schemes))
        if name in self.names():
            raise ConfigError(f"there is a transport named {name!r} already")
        if taken := sorted(set(kind.schemes) & set(self.schemes())):
            raise ConfigError(f"the URL scheme {taken[0]!r} belongs to the transport {self._named(taken[0])!r} already")
        self._kinds[name] = kind

    def names(self) -> tuple[str, ...]:
        """The names that a `TransportConfig` can have, sorted."""
        return tuple(sorted({*self._kinds, *self._found}))

    def schemes(self) -> tuple[str, ...]:
        """The URL schemes that are understood, sorted."""
        self._load_all()
        return tuple(sorted({scheme for kind in self._kinds.values() for scheme in kind.schemes}))

    def make(self, like: TransportLike) -> Transport:
        """A transport from a URL, from a config, or the transport that it is.

        Raises:
          ConfigError: if there is no such kind of transport, or its options make no sense.
        """
        match like:
            case Transport():
                return like
            case TransportConfig():
                name = {} if like.id is None else {"name": like.id}
                return self._build(like.name, {**like.options, **name})
            case str():
                text("the URL of a transport", like, secret=True)
                return self._build(self._named(self._scheme(like)), {"url": like})
            case _:
                raise ConfigError(f"a transport is a URL, a TransportConfig or a Transport, not {shown(like)}")

    def make_all(self, likes: Iterable[TransportLike]) -> tuple[Transport, ...]:
        """The transports of one mesh, in order; their names tell them apart.

        Raises:
          ConfigError: as `make`, or if two have the same name.
        """
        transports = tuple(map(self.make, likes))
        names = [text("the name of a transport", transport.name) for transport in transports]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(
                f"two transports are named {twice[0]!r}: leave one out, or name it with"
                " TransportConfig(..., id='another')"
            )
        return transports

    def _build(self, name: str, options: Mapping[str, object]) -> Transport:
        make = self._kind(name).make
        try:
            inspect.signature(make).bind(**options)
        except TypeError as error:
            raise ConfigError(f"the transport {name!r} can't be made of these options: {error}") from error
        return make(**options)

    def _kind(self, name: str) -> TransportKind:
        if name not in self._kinds:
            if name not in self._found:
                raise ConfigError(f"unknown transport {name!r}: the names are {', '.join(self.names())}")
            self._kinds[name] = self._load(self._found[name])
        return self._kinds[name]

    def _scheme(self, url: str) -> str:
        found = _URL.match(url)
        scheme = found["scheme"].lower() if found else ""
        schemes = self.schemes()
        if scheme in schemes:
            return scheme
        hint = {
            "": f" (did you mean ws://{public_url(url):.100}?)" if url else "",
            "http": " (did you mean ws://?)",
            "https": " (did you mean wss://?)",
        }.get(scheme, "")
        raise ConfigError(f"unknown transport {public_url(url)!r:.100}: the schemes are {', '.join(schemes)}{hint}")

    def _named(self, scheme: str) -> str:
        return next(name for name, kind in sorted(self._kinds.items()) if scheme in kind.schemes)

    def _load_all(self) -> None:
        """Load what is installed; what can't be loaded is left out here, and said when it is asked for by name."""
        for name, entry in self._found.items():
            if name in self._kinds:
                continue
            try:
                self._kinds[name] = self._load(entry)
            except ConfigError as error:
                logger.warning("%s", error)

    @staticmethod
    def _load(entry: EntryPoint) -> TransportKind:
        try:
            kind = entry.load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"the transport {entry.name!r} ({entry.value}) can't be loaded: {error}") from error
        if not isinstance(kind, TransportKind):
            raise ConfigError(f"the transport {entry.name!r} ({entry.value}) is no TransportKind")
        return kind


def _entry_points() -> Iterator[EntryPoint]:
    from importlib.metadata import entry_points  # it imports half of `email`

    yield from entry_points(group=GROUP)


_installed: Final = Registry(_entry_points())

register: Final = _installed.register
names: Final = _installed.names
schemes: Final = _installed.schemes
make_transport: Final = _installed.make
make_transports: Final = _installed.make_all
