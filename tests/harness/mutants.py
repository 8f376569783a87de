"""Mutation testing: does a test fail when a line of `p2pmesh/protocols` or `p2pmesh/wire` is changed?

cosmic-ray finds what can be changed and changes it; this draws a random sample, runs the tests that mirror the changed
module (and for what they don't notice a second stage, simulated networks), and says which changes nobody noticed.

    python -m tests.harness.mutants --sample 100 --seed 1
    python -m tests.harness.mutants --only protocols/kademlia --sample 20

All happens in temporary copies of the project; the working tree is never touched. Left out are changes of annotations,
of module constants and fractions, which tune, and those that `equivalent_mutants.toml` lists, each with its reason.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import queue
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from attrs import frozen
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

ROOT = Path(__file__).parents[2]
MUTATED = ("p2pmesh/protocols", "p2pmesh/wire")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
IGNORED = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "*.egg-info", "node_modules")
SECOND_STAGE = ("tests/simulation/discrete",)
ENOUGH = 0.9
"""The share of what is not equivalent that has to be killed."""

_BINARY = [
    "Add_Sub",
    "Sub_Add",
    "Mul_Div",
    "Div_Mul",
    "FloorDiv_Mul",
    "Mod_FloorDiv",
    "Pow_Mul",
    "LShift_RShift",
    "RShift_LShift",
    "BitAnd_BitOr",
    "BitOr_BitAnd",
    "BitXor_BitAnd",
]
_COMPARISONS = [
    "Eq_NotEq",
    "NotEq_Eq",
    "Lt_LtE",
    "Lt_GtE",
    "LtE_Lt",
    "LtE_Gt",
    "Gt_GtE",
    "Gt_LtE",
    "GtE_Gt",
    "GtE_Lt",
    "Is_IsNot",
    "IsNot_Is",
]
OPERATORS = (
    *(f"core/ReplaceBinaryOperator_{kind}" for kind in _BINARY),
    *(f"core/ReplaceComparisonOperator_{kind}" for kind in _COMPARISONS),
    *(f"core/{kind}" for kind in ("AddNot", "NumberReplacer", "ReplaceAndWithOr", "ReplaceOrWithAnd")),
    *(f"core/{kind}" for kind in ("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ZeroIterationForLoop")),
    *(f"core/{kind}" for kind in ("ReplaceBreakWithContinue", "ReplaceContinueWithBreak", "ExceptionReplacer")),
    "core/ReplaceUnaryOperator_USub_UAdd",
    "core/ReplaceUnaryOperator_Delete_Not",
)
"""One or two changes for each thing that can be changed: all of cosmic-ray's would be mostly of arithmetic."""


@frozen
class Mutant:
    """A change: the so-and-so-manieth place in a module where an operator can be applied."""

    path: str
    operator: str
    occurrence: int

    def code(self, source: str) -> str:
        code: str | None = mutate_code(source, get_operator(self.operator)(), self.occurrence)
        assert code is not None
        return code

    def diff(self, source: str) -> str:
        """What it changes, without context."""
        lines = difflib.unified_diff(
            source.splitlines(), self.code(source).splitlines(), self.path, self.path, n=0, lineterm=""
        )
        return "\n".join(lines)


@frozen
class Verdict:
    mutant: Mutant
    killed_by: str | None
    """The stage that noticed."""
    diff: str


# --- which there are --------------------------------------------------------------------------------------------------


def mutants(root: Path, only: str) -> Iterator[Mutant]:
    """Every mutant of every module, in a fixed order."""
    for folder in MUTATED:
        for path in sorted((root / folder).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if only in name:
                yield from _mutants_of(name, path.read_text())


def _mutants_of(name: str, source: str) -> Iterator[Mutant]:
    inert = list(_inert_ranges(ast.parse(source)))
    nodes = list(ast_nodes(get_ast(source)))
    for operator_name in OPERATORS:
        operator, occurrence = get_operator(operator_name)(), 0
        for node in nodes:
            tunes = node.type == "number" and not node.value.isdecimal()
            for start, _ in operator.mutation_positions(node):
                if not tunes and not any(first <= start < last for first, last in inert):
                    yield Mutant(name, operator_name, occurrence)
                occurrence += 1


_Range = tuple[tuple[int, int], tuple[int, int]]
_KEYWORDS = ("frozen", "kw_only", "repr", "slots")
"""Of classes and their fields: what holds programmers back, and changes nothing that runs."""


def _inert_ranges(tree: ast.Module) -> Iterator[_Range]:
    """Where a change is none of behaviour: annotations, aliases of types, how classes are made, constants."""
    for node in ast.walk(tree):
        match node:
            case ast.arg(annotation=ast.expr() as annotation):
                yield _range(annotation)
            case ast.FunctionDef(args=arguments, returns=returns):
                yield from _marks_of_arguments(arguments)
                if returns is not None:
                    yield _range(returns)
            case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
                yield _range(node)
            case ast.AnnAssign():
                yield _range(node.annotation)
            case ast.ClassDef(keywords=keywords) | ast.Call(keywords=keywords):
                yield from (_range(keyword.value) for keyword in keywords if keyword.arg in _KEYWORDS)
            case _:
                pass
    for statement in tree.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name), *_]) if name.isupper():
                yield _range(statement)
            case ast.AnnAssign(target=ast.Name(id=name)) if name.isupper():
                yield _range(statement)
            case _:
                pass


def _marks_of_arguments(arguments: ast.arguments) -> Iterator[_Range]:
    """The bare `*` before arguments that are given by name only."""
    if arguments.kwonlyargs and arguments.vararg is None:
        before = (*arguments.posonlyargs, *arguments.args, *arguments.defaults)
        first = arguments.kwonlyargs[0]
        last = max((_range(one)[1] for one in before), default=(first.lineno, 0))
        yield last, (first.lineno, first.col_offset)


def _range(node: Any) -> _Range:
    return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def tests_of(root: Path, path: str) -> tuple[str, ...]:
    """The tests that mirror a module."""
    folder = f"tests/{Path(path).relative_to('p2pmesh').parent.as_posix()}"
    if (root / folder).is_dir() and folder != "tests/protocols":
        return (folder, "tests/protocols/test_statistics.py") if folder.startswith("tests/protocols") else (folder,)
    return ("tests/protocols", "tests/runtime")


def is_equivalent(diff: str, listed: list[dict[str, str]]) -> bool:
    """Whether the list has it: by its lines, wherever they stand in the file."""
    lines = diff.splitlines()[3:]
    removed = "\n".join(line[1:].strip() for line in lines if line.startswith("-"))
    added = "\n".join(line[1:].strip() for line in lines if line.startswith("+"))
    path = diff.partition("\n")[0].removeprefix("--- ")
    return any(
        (entry["file"], entry["line"].strip(), entry["mutant"].strip()) == (path, removed, added) for entry in listed
    )


# --- running them -----------------------------------------------------------------------------------------------------


class Workshop:
    """A copy of the project in which mutants are tried, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._limits: dict[tuple[str, ...], float] = {}

    def prepare(self, tests: tuple[str, ...]) -> None:
        """See that these tests pass as things stand, and how long they take."""
        if tests in self._limits:
            return
        began = time.monotonic()
        if self._run(tests, 600.0):
            raise SystemExit(f"{' '.join(tests)}: fails without any mutant, so it can't judge one")
        self._limits[tests] = 20.0 + 4 * (time.monotonic() - began)

    def judge(self, mutant: Mutant, diff: str) -> Verdict:
        path = self.root / mutant.path
        source = path.read_text()
        path.write_text(mutant.code(source))
        try:
            for tests in (tests_of(self.root, mutant.path), SECOND_STAGE):
                if self._run(tests, self._limits[tests]):
                    return Verdict(mutant, " ".join(tests), diff)
            return Verdict(mutant, None, diff)
        finally:
            path.write_text(source)

    def _run(self, tests: tuple[str, ...], limit: float) -> bool:
        """Whether a test fails, or they take longer than they may."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.root),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_PROFILE": "quick",
            "CI": "1",  # the same examples each time
        }
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            return process.wait(limit) != 0
        except subprocess.TimeoutExpired:
            return True
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def try_all(chosen: list[tuple[Mutant, str]], jobs: int) -> Iterator[Verdict]:
    """Judge mutants, several at once; each verdict as it falls."""
    with ExitStack() as stack:
        workshops: queue.SimpleQueue[Workshop] = queue.SimpleQueue()
        for _ in range(jobs):
            copy = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-"))) / "project"
            shutil.copytree(ROOT, copy, ignore=IGNORED)
            workshops.put(Workshop(copy))

        def judge(item: tuple[Mutant, str]) -> Verdict:
            workshop = workshops.get()
            try:
                for tests in (tests_of(workshop.root, item[0].path), SECOND_STAGE):
                    workshop.prepare(tests)
                return workshop.judge(*item)
            finally:
                workshops.put(workshop)

        with ThreadPoolExecutor(jobs) as pool:
            yield from pool.map(judge, chosen)


def _say(line: str) -> None:
    print(line, flush=True)  # ruff: ignore[print] - this is a program


def main() -> int:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sample", type=int, default=100, help="how many mutants to try")
    parser.add_argument("--seed", type=int, default=1, help="which ones")
    parser.add_argument("--only", default="", help="a part of the paths of the modules to change")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--at-least", type=float, default=ENOUGH, help="the share that has to be killed")
    options = parser.parse_args()

    everything = list(mutants(ROOT, options.only))
    sample = random.Random(options.seed).sample(everything, min(options.sample, len(everything)))
    listed: list[dict[str, str]] = tomllib.loads(EQUIVALENT.read_text()).get("mutant", [])
    diffs = [(mutant, mutant.diff((ROOT / mutant.path).read_text())) for mutant in sample]
    chosen = [(mutant, diff) for mutant, diff in diffs if not is_equivalent(diff, listed)]
    _say(
        f"{len(everything)} mutants; of {len(sample)} drawn with seed {options.seed}, {len(chosen)} are not equivalent"
    )

    survivors = []
    for number, verdict in enumerate(try_all(chosen, options.jobs), 1):
        mutant = verdict.mutant
        fate = "SURVIVED" if verdict.killed_by is None else "killed"
        _say(f"{number:4} {fate:9}{mutant.path} {mutant.operator.removeprefix('core/')} {mutant.occurrence}")
        if verdict.killed_by is None:
            survivors.append(verdict)
    share = 1 - len(survivors) / len(chosen) if chosen else 1.0
    for verdict in survivors:
        _say(f"\n{verdict.diff}")
    _say(f"\nkilled {len(chosen) - len(survivors)}, survived {len(survivors)}: {share:.1%}")
    return 0 if share >= options.at_least else 1


if __name__ == "__main__":
    sys.exit(main())
