"""The checks of this project; `.ci/run` runs the same commands.

nox                     lint, types, tests
nox -s webrtc           tests over real WebRTC links
nox -s simulate         the longer simulations and property tests
nox -s soak             property tests for a night
nox -s networks         networks in a box, as root: NATs, bad cables, changes; `-- nat --sets stun` for some
nox -s soak-real        15 minutes of processes at work, some killed: `-- --minutes 60 --hogs 6`
nox -s coverage         lines and branches that the tests don't reach
nox -s bench            benchmarks, as JSON
nox -s fuzz             what strangers may send, mutated: link frames, datagrams, the server's heads, frames and TLS
nox -s mutants          whether tests notice changes: `-- --sample 100 --seed 1`
nox -s sdist            the tests of the source distribution, as a packager runs them
nox -s newest           the tests against the newest releases of what we reach into; `.ci/weekly` runs it
"""

import re
from pathlib import Path

import nox

nox.options.sessions = ["lint", "types", "tests"]
nox.options.error_on_missing_interpreters = False

PYTHONS = ["3.11", "3.12", "3.13"]
ADVISORY = "ASYNC114,ASYNC910,ASYNC911,ASYNC912,ASYNC913"
"""Optional rules of flake8-async that find fault with startable tasks and with the driver loop."""
BOUNDED = r'^    "([a-z0-9-]+)>=[0-9.]+,<'
"""A line of pyproject.toml with a dependency that has an upper bound."""
CODE = ["p2pmesh", "tests", "examples", "benchmarks", "noxfile.py"]


def install(session: nox.Session, extra: str) -> None:
    session.install("-e", f".[{extra}]")


@nox.session
def lint(session: nox.Session) -> None:
    install(session, "dev")
    session.run("ruff", "check", *CODE)
    session.run("ruff", "format", "--check", *CODE)
    files = (
        session.run("git", "ls-files", "p2pmesh/*.py", "examples/*.py", "benchmarks/*.py", external=True, silent=True)
        or ""
    )
    session.run("flake8-async", *files.split(), "--disable", ADVISORY)
    session.run("lint-imports")


@nox.session
def types(session: nox.Session) -> None:
    install(session, "dev")
    session.run("mypy")
    session.run("pyright", "--ignoreexternal", "--verifytypes", "p2pmesh")
    session.run("pyright", "tests/typed_sample.py")


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    install(session, "test")
    session.run("pytest", *session.posargs)


@nox.session
def webrtc(session: nox.Session) -> None:
    install(session, "test")
    session.run("pytest", "-m", "webrtc", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    install(session, "test")
    session.run("pytest", "-m", "simulation or hypothesis", *session.posargs, env={"HYPOTHESIS_PROFILE": "ci"})


@nox.session
def soak(session: nox.Session) -> None:
    """The property tests for as long as a night lasts: `-- -k topology` for some of them."""
    install(session, "test")
    session.run(
        "pytest",
        "-m",
        "not webrtc and not networks",
        "--timeout",
        "0",
        *session.posargs,
        env={"HYPOTHESIS_PROFILE": "soak"},
    )


@nox.session
def networks(session: nox.Session) -> None:
    """Namespaces, NATs, bad cables: all experiments but the soak, an hour, or those that are named."""
    install(session, "test")
    session.run("python", "-m", "tests.netlab", *(session.posargs or ["all"]))


@nox.session(name="soak-real")
def soak_real(session: nox.Session) -> None:
    """Processes at work, some of which are killed; fails unless everything due came once and nobody was blamed."""
    install(session, "test")
    session.run("python", "-m", "tests.netlab", "soak", *session.posargs)


@nox.session
def coverage(session: nox.Session) -> None:
    install(session, "dev")
    session.run("coverage", "run", "-m", "pytest", *session.posargs)
    session.run("coverage", "report", "--show-missing")


@nox.session
def mutants(session: nox.Session) -> None:
    """Change lines of protocols/ and wire/, in a copy: at least 90% of a random sample has to be noticed by a test."""
    install(session, "mutants")
    session.run("python", "-m", "tests.harness.mutants", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    session.install(".")
    session.run("python", "benchmarks/links.py", "--json", *session.posargs)
    session.run("python", "benchmarks/server.py", "--json", *session.posargs)
    session.run("python", "benchmarks/simulation.py", "--json", *session.posargs)
    session.run("python", "benchmarks/meshes.py", "--json")
    session.run("python", "benchmarks/broadcast.py", "--json")
    session.run("python", "benchmarks/overlay.py", "--json", "--quick")
    session.run("python", "benchmarks/gossip.py", "--json", "--quick")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Millions of mutated frames, request heads and datagrams, for a night; the test suite has a short run of each."""
    install(session, "test")
    session.run("python", "benchmarks/fuzz.py", "--json", "--frames", "10000000")
    counts = ("--heads", "1000000", "--frames", "10000000", "--handshakes", "10000")
    session.run("python", "benchmarks/fuzz_server.py", "--json", *counts)
    session.run("python", "benchmarks/fuzz_datagrams.py", "--json", "--datagrams", "1000000")


@nox.session
def newest(session: nox.Session) -> None:
    """The tests against the newest releases of the libraries that pyproject.toml keeps below a version.

    Their internals are used: a failure here says what has to be looked at before the bound is raised.
    """
    install(session, "test")
    bounded = re.findall(BOUNDED, Path("pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    session.install("--upgrade", "--no-deps", *bounded)
    session.run("pytest", "tests/links", *session.posargs)
    session.run("pytest", "-m", "webrtc", *session.posargs)


@nox.session
def sdist(session: nox.Session) -> None:
    """The tests of the source distribution, unpacked elsewhere."""
    session.install("build")
    target = Path(session.create_tmp()).resolve()
    session.run("python", "-m", "build", "--sdist", "--outdir", str(target))
    archive = max(target.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
    session.run("python", "-m", "tarfile", "-e", str(archive), str(target))
    session.chdir(target / archive.name.removesuffix(".tar.gz"))
    session.install(".[test]")
    session.run("pytest", *session.posargs)
