"""Import aiortc without PyAV, which only its audio and video need: 0.1 s and 16 MB that data channels save.

While aiortc is imported, stand-ins take the place of `av` in `sys.modules`, unless a program has imported either before
us. Afterwards they are gone: whoever imports `av` gets PyAV. aiortc keeps the stand-ins of the classes that it imports;
on the first use of one (made, asked for an attribute, checked against an instance of PyAV) they load PyAV and act for
it, so media in the same process work, in other peer connections. An aiortc that imports something else of PyAV loads
it at once, and costs what it costs.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any

_CLASSES = {
    "av": {"AudioFrame", "AudioResampler", "CodecContext", "VideoFrame"},
    "av.frame": {"Frame"},
    "av.packet": {"Packet"},
    "av.video": set[str](),
    "av.video.codeccontext": {"VideoCodecContext"},
}
"""What aiortc 1.16 imports of PyAV, by module."""


class _StandInClass(type):
    """A class of PyAV's, loaded when it is used."""

    def _real(cls) -> Any:
        return _real(cls.__module__, cls.__name__)

    def __call__(cls, *args: object, **options: object) -> Any:
        return cls._real()(*args, **options)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # `typing` looks for some
            raise AttributeError(name)
        return getattr(cls._real(), name)

    def __instancecheck__(cls, instance: object) -> bool:
        """There is no instance of what is not loaded."""
        return "av" in sys.modules and isinstance(instance, cls._real())

    def __subclasscheck__(cls, other: type) -> bool:
        return cls is other or ("av" in sys.modules and issubclass(other, cls._real()))


class _StandInModule(ModuleType):
    """A module of PyAV's, loaded when anything but one of its deferred classes is asked for."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []
        for known in _CLASSES[name]:
            setattr(self, known, _StandInClass(known, (), {"__module__": name}))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for some
            raise AttributeError(name)
        return _real(self.__name__, name)


def _real(module: str, name: str) -> Any:
    _withdraw()
    return getattr(import_module(module), name)


def _withdraw() -> None:
    for name in _CLASSES:
        if isinstance(sys.modules.get(name), _StandInModule):
            del sys.modules[name]


@contextmanager
def _deferred_av() -> Iterator[None]:
    if not {"av", "aiortc"} & sys.modules.keys():
        sys.modules.update({name: _StandInModule(name) for name in _CLASSES})
    try:
        yield
    finally:
        _withdraw()


with _deferred_av():
    try:
        import aiortc as aiortc
    except ImportError:  # it wants what there is no stand-in for
        _withdraw()
        import aiortc as aiortc
