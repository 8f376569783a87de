"""The README tells the truth."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)


def test_the_ci_runs_the_test_command_of_the_readme():
    command = next(text for kind, text in BLOCKS if kind == "sh" and "pytest" in text).strip()
    assert command in (ROOT / ".ci" / "run").read_text()


def test_the_example_has_about_twenty_lines():
    example = next(text for kind, text in BLOCKS if kind == "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 24


@pytest.mark.webrtc
def test_the_example_runs_as_printed():
    example = next(text for kind, text in BLOCKS if kind == "python")
    result = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, timeout=40, check=False)
    assert result.returncode == 0, result.stderr
    assert "alice got {'text': 'hello'}" in result.stdout
    assert "Delivered(reached=1" in result.stdout
    assert "bob got {'text': 'hello yourself'}" in result.stdout


def test_every_relative_link_leads_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)", README):
        assert (ROOT / target).exists(), target


def configs():
    tree = ast.parse((ROOT / "p2pmesh" / "config.py").read_text())
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name.endswith("Config")]


def is_text(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@pytest.mark.parametrize("config", [pytest.param(config, id=config.name) for config in configs()])
def test_every_field_of_a_config_says_why(config):
    """In the docstring below it, which two fields that belong together may share."""
    without = [
        field.target.id
        for field, after, then in zip(
            config.body, [*config.body[1:], None], [*config.body[2:], None, None], strict=True
        )
        if isinstance(field, ast.AnnAssign)
        and not ast.unparse(field.annotation).endswith("Config")
        and not is_text(after)
        and not (isinstance(after, ast.AnnAssign) and is_text(then))
    ]
    assert not without
