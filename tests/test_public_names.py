"""What `import p2pmesh` offers."""

import inspect
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import attrs
import pytest

import p2pmesh
import p2pmesh.server


@pytest.mark.parametrize("name", p2pmesh.__all__)
def test_every_public_name_is_there_and_documented(name):
    thing = getattr(p2pmesh, name)
    if inspect.isclass(thing) or inspect.isfunction(thing):
        assert inspect.getdoc(thing), f"{name} has no docstring"


def test_all_is_sorted_and_complete():
    names = {name for name in dir(p2pmesh) if not name.startswith("_")}
    public = {name for name in names if not inspect.ismodule(getattr(p2pmesh, name))}
    assert list(p2pmesh.__all__) == sorted(p2pmesh.__all__)
    assert public == set(p2pmesh.__all__)


def test_every_config_that_a_mesh_takes_is_public():
    nested = {type(value).__name__ for value in attrs.asdict(p2pmesh.MeshConfig(), recurse=False).values()}
    assert {name for name in nested if name.endswith("Config")} <= set(p2pmesh.__all__)


def test_every_public_method_is_documented():
    for name in p2pmesh.__all__:
        thing = getattr(p2pmesh, name)
        if not inspect.isclass(thing) or not thing.__module__.startswith("p2pmesh"):
            continue
        for attribute, value in vars(thing).items():
            if not attribute.startswith("_") and (inspect.isfunction(value) or isinstance(value, property)):
                assert inspect.getdoc(getattr(thing, attribute)), f"{name}.{attribute} has no docstring"


def test_every_error_is_a_mesh_error():
    errors = [thing for thing in vars(p2pmesh).values() if inspect.isclass(thing) and issubclass(thing, Exception)]
    assert len(errors) > 10
    assert all(issubclass(error, p2pmesh.MeshError) for error in errors)


def test_the_version_is_the_one_of_the_package():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert p2pmesh.__version__ == project["version"]


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'open_mash'"):
        _ = p2pmesh.open_mash


@pytest.mark.parametrize("name", ["ServerConfig", "SignalingServer", "open_signaling_server"])
def test_the_servers_package_has_the_servers_names(name):
    assert getattr(p2pmesh.server, name) is getattr(p2pmesh, name)


NO_TRANSPORT = {"h11", "importlib.metadata", "p2pmesh.transports.memory", "wsproto"}
NO_MESH = {"aiortc", "asyncio", "trio_asyncio"}
NO_PEER = {"av", "click", "p2pmesh.server.app", "prometheus_client", "rich"}


@pytest.mark.parametrize(
    ("code", "unwanted"),
    [
        ("import p2pmesh", NO_TRANSPORT | NO_MESH | NO_PEER),
        ("from p2pmesh.transports.registry import make_transport; make_transport('ws://here')", NO_MESH | NO_PEER),
        ("import p2pmesh.links.webrtc.dialer", NO_PEER),
    ],
)
def test_what_a_peer_does_not_need_yet_is_not_imported(code, unwanted):
    code = f"{code}; import sys; print({unwanted!r} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def documented_parts():
    for name in p2pmesh.__all__:
        thing = getattr(p2pmesh, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield name, thing
        if inspect.isclass(thing) and thing.__module__.startswith("p2pmesh"):
            for attribute, value in vars(thing).items():
                function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
                if inspect.isfunction(function):
                    yield f"{name}.{attribute}", function


@pytest.mark.parametrize(("name", "thing"), list(documented_parts()))
def test_the_types_of_public_names_are_there_at_run_time(name, thing):
    hints = typing.get_type_hints(thing)
    if attrs.has(thing):
        assert {field.name for field in attrs.fields(thing)} <= set(hints)


@pytest.mark.parametrize("name", ["Payload", "PayloadLike", "JsonValue", "JsonLike", "Event", "PeerId", "Transport"])
def test_a_type_can_be_part_of_another(name):
    thing = getattr(p2pmesh, name)
    assert None.__class__ in typing.get_args(thing | None)
    assert thing in typing.get_args(dict[str, thing])
