"""Imports run one way, the cores stay pure, and asyncio stays in its one room."""

import ast
from functools import cache
from pathlib import Path

import pytest

import p2pmesh

ROOT = Path(p2pmesh.__file__).parent
FOUNDATION = {"keyspace", "identity", "errors", "config", "events", "wire"}
MAY_IMPORT = {
    **dict.fromkeys(FOUNDATION, FOUNDATION),
    "protocols": FOUNDATION | {"protocols"},
    "links": FOUNDATION | {"protocols", "links"},
    "server": FOUNDATION | {"protocols", "server"},
    "transports": FOUNDATION | {"protocols", "transports", "server"},
    "receipts": FOUNDATION | {"runtime"},
    "dht": FOUNDATION | {"protocols", "runtime"},
    "runtime": FOUNDATION | {"protocols", "links", "transports", "runtime", "receipts"},
    "mesh": FOUNDATION | {"dht", "protocols", "links", "transports", "runtime", "receipts"},
    "simulation": FOUNDATION
    | {"protocols", "links", "transports", "runtime", "receipts", "mesh", "server", "simulation"},
}
BRIDGES = {"asyncio", "aiortc", "aioice", "trio_asyncio", "pyee"}
IMPURE = {"trio", "time", "logging", "datetime", "socket", "threading", "secrets", "os"}


@cache
def nodes_of(file: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(file.read_text())))


@cache
def imports_of(file: Path) -> set[str]:
    names = set()
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


FILES = [pytest.param(file, id=str(file.relative_to(ROOT))) for file in sorted(ROOT.rglob("*.py"))]


@pytest.mark.parametrize("file", FILES)
def test_imports_run_one_way(file):
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    if part not in MAY_IMPORT:
        return
    for name in imports_of(file):
        if name.startswith("p2pmesh.") and name.count("."):
            target = name.split(".")[1]
            if (ROOT / target).exists() or (ROOT / f"{target}.py").exists():
                assert target in MAY_IMPORT[part], f"{part} must not import {name}"


@pytest.mark.parametrize("file", FILES)
def test_asyncio_stays_in_the_webrtc_bridge(file):
    if file.parent.name == "webrtc":
        return
    assert not {name.split(".")[0] for name in imports_of(file)} & BRIDGES


@pytest.mark.parametrize("file", sorted((ROOT / "protocols").rglob("*.py")), ids=str)
def test_cores_touch_no_clock_no_log_and_no_trio(file):
    assert not {name.split(".")[0] for name in imports_of(file)} & IMPURE
    assert not [node for node in nodes_of(file) if isinstance(node, ast.Await | ast.AsyncFunctionDef)]
