"""docs/security.md names a test for each promise, and each of them exists."""

import ast
import re
from pathlib import Path

import p2pmesh

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
PROMISED = PAGE.split("\n## What is promised\n")[1].split("\n## What is not promised\n")[0]
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)


def functions_in(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def rows():
    lines = [line for line in PROMISED.splitlines() if line.startswith("|")]
    return [line for line in lines if not line.startswith(("| promise |", "| --- |"))]


def test_each_promise_names_its_tests():
    assert len(rows()) > 30
    without = [row for row in rows() if not re.search(r"\| `tests/[^|]+` \|$", row)]
    assert not without


def test_each_test_that_is_named_exists():
    files = {path for path, _ in NAMED}
    missing = sorted(path for path in files if not (ROOT / path).is_file())
    assert not missing
    known = {path: functions_in(path) for path in files}
    assert not sorted(f"{path}::{name}" for path, name in NAMED if name not in known[path])


def test_nothing_else_looks_like_a_test_that_is_not_checked():
    assert len(re.findall(r"test_\w+", PAGE)) == 2 * len(NAMED) + 1  # each with its file, and this one


def test_each_public_name_is_one():
    for name in set(re.findall(r"`([A-Z]\w+)[`.(]", PAGE)) - {"DEBUG"}:
        assert hasattr(p2pmesh, name), name


def test_each_field_of_a_config_is_one():
    fields = re.findall(r"`(\w+Config)\.(\w+)`", PAGE)
    assert fields
    for kind, name in fields:
        assert name in getattr(p2pmesh, kind).__annotations__, name
