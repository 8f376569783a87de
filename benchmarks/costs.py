"""What a peer costs when nobody asks anything of it: bytes of joins and of rest, start of a process, idle links.

    python benchmarks/costs.py --json                                   # all, a line each; about an hour
    python benchmarks/costs.py traffic --peers 100 --links 5 --json     # two minutes
    python benchmarks/costs.py start idle --versus ../before --json     # beside another checkout

`traffic` runs bare peers in virtual time, all subsystems on, over links of 50 ms: its figures are exact. A peer joins
every 50 ms (from 5,000 on, every 20 ms). For each mesh and seed: "join_bytes" of control that each peer sent over links
until a minute after the last join; "join_events" of the simulator; "rest_bytes_per_s" of control for each peer in the
ten minutes after that, with nothing asked of it; "rest_dht_share" of them; "dht_packets", mean sizes of its requests
and answers while 100 values are put into it; "stored_bytes_per_s" as above, in the hour after that; "broadcast_100",
the frame of a broadcast of 100 bytes; "packets", their mean sizes while peers joined; "join_kinds" and "rest_kinds",
bytes by kind. From 5,000 peers on only a minute of rest is measured, and nothing is stored.

`start` is the CPU time of a fresh interpreter, user and system, the least of `--rounds`: "trio_s" of `import trio`,
"import_s" of `import p2pmesh`, "links_s" with all that a mesh loads for its WebRTC links.

`idle` watches processes with real links on loopback for 30 s: "peer" is one of four meshes with three links each, a
process for each; "hundred" is a process with twenty meshes of ten links each, a hundred among them, and "aiortc" one
with a hundred pairs of bare connections. "rss_mb" is what the process has, "links_mb" what it has more than before its
first link, "cpu_percent" of one core.

With `--versus`, `start` and `idle` run for both checkouts in turn, and a line has "checkout".
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import process_time
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent.parent
SIZES: Final = (100, 1_000, 10_000)
LINKS: Final = (3, 5, 8)
SETTLE: Final = 20.0
"""Seconds in which real links come to rest."""
WATCHED: Final = 30.0
FEW: Final = (4, 3)
"""Meshes with a process for each, and links of each."""
CROWD: Final = (20, 10)
PAIRS: Final = 100
LINKS_OF_ANY_AGE: Final = """
import p2pmesh, p2pmesh.links.webrtc
try:
    import p2pmesh.links.webrtc.dialer
except ImportError:
    pass  # an older checkout: it was one module
"""
LOADED: Final = {
    "trio_s": "import trio",
    "import_s": "import p2pmesh",
    "links_s": LINKS_OF_ANY_AGE,
}
TIMEOUT: Final = 600.0

Line = dict[str, Any]


# --- start ------------------------------------------------------------------------------------------------------------


def start(checkouts: list[Path], rounds: int) -> list[Line]:
    """CPU seconds of fresh interpreters, the checkouts in turn."""
    seconds = [
        {name: [_cpu_of(code, checkout) for checkout in checkouts] for name, code in LOADED.items()}
        for _ in range(rounds)
    ]
    return [{name: min(turn[name][place] for turn in seconds) for name in LOADED} for place in range(len(checkouts))]


def _cpu_of(code: str, checkout: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], cwd=checkout, env=_code_of(checkout), check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3)


def _code_of(checkout: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(checkout)}


# --- idle -------------------------------------------------------------------------------------------------------------


def idle(checkout: Path) -> Line:
    """What processes with real links need while nothing happens."""
    server = _spawn([sys.executable, "-m", "p2pmesh", "serve", "--port", "0", "--json"], checkout)
    try:
        url = json.loads(_line(server))["url"]
        figures = {"peer": _mean(_run_workers("meshes", checkout, FEW[0], url, 1, FEW[1]))}
    finally:
        server.terminate()
        server.wait()
    (figures["hundred"],) = _run_workers("meshes", checkout, 1, "memory://costs", *CROWD)
    (figures["aiortc"],) = _run_workers("aiortc", checkout, 1, "", PAIRS, 1)
    return figures


def _run_workers(side: str, checkout: Path, workers: int, url: str, meshes: int, links: int) -> list[Line]:
    command = [sys.executable, __file__, "--worker", side, url, str(meshes), str(links)]
    processes = [_spawn(command, checkout) for _ in range(workers)]
    try:
        return [json.loads(_line(process)) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _spawn(command: list[str], checkout: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(command, cwd=checkout, env=_code_of(checkout), stdout=subprocess.PIPE, text=True)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{process.args!r} ended before its time")
    return line


def _mean(lines: list[Line]) -> Line:
    return {name: round(sum(line[name] for line in lines) / len(lines), 3) for name in lines[0]}


# --- a process that is watched ----------------------------------------------------------------------------------------


def work(side: str, url: str, meshes: int, links: int) -> None:
    """Open links, let them rest, and print what that takes."""
    if side == "aiortc":
        asyncio.run(_hold_pairs(meshes))
        return
    import trio

    trio.run(_hold_meshes, url, meshes, links)


async def _hold_meshes(url: str, meshes: int, links: int) -> None:
    import trio

    exec(LINKS_OF_ANY_AGE)  # before the first look at memory
    from p2pmesh import open_mesh

    before = _rss_mb()
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_mesh(url, room="costs", max_peers=links)) for _ in range(meshes)]
        await trio.sleep(SETTLE)
        used = process_time()
        await trio.sleep(WATCHED)
        _report(before, used, sum(mesh.peer_count for mesh in opened))
        await trio.sleep(TIMEOUT)  # the others are watched still


async def _hold_pairs(pairs: int) -> None:
    from aiortc import RTCConfiguration, RTCPeerConnection

    before = _rss_mb()
    connections = []
    for _ in range(pairs):
        ours, theirs = (RTCPeerConnection(RTCConfiguration(iceServers=[])) for _ in range(2))
        ours.createDataChannel("idle")
        await ours.setLocalDescription(await ours.createOffer())
        await theirs.setRemoteDescription(ours.localDescription)
        await theirs.setLocalDescription(await theirs.createAnswer())
        await ours.setRemoteDescription(theirs.localDescription)
        connections += [ours, theirs]
    await asyncio.sleep(SETTLE)
    used = process_time()
    await asyncio.sleep(WATCHED)
    _report(before, used, sum(connection.connectionState == "connected" for connection in connections))


def _report(before: float, used: float, ends: int) -> None:
    now = _rss_mb()
    figures = {
        "ends": ends,
        "rss_mb": round(now, 1),
        "links_mb": round(now - before, 1),
        "cpu_percent": round(100 * (process_time() - used) / WATCHED, 3),
    }
    print(json.dumps(figures), flush=True)


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


# --- all --------------------------------------------------------------------------------------------------------------


def traffic_lines(options: argparse.Namespace) -> Iterator[Line]:
    """One for each mesh and seed."""
    sys.path.insert(0, str(HERE))
    from benchmarks.costs_traffic import traffic

    for peers in options.peers:
        for max_peers in options.links:
            for seed in range(1, options.seeds + 1):
                yield traffic(peers, max_peers, seed)


def process_lines(name: str, options: argparse.Namespace) -> Iterator[Line]:
    """One for each checkout."""
    checkouts = [HERE, *options.versus]
    lines = start(checkouts, options.rounds) if name == "start" else map(idle, checkouts)
    for checkout, line in zip(checkouts, lines, strict=True):
        yield {"section": name, "checkout": checkout.name, **line}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help="traffic, start, idle; all by default")
    parser.add_argument("--json", action="store_true", help="one JSON object for each line")
    parser.add_argument("--peers", type=int, nargs="+", default=SIZES)
    parser.add_argument("--links", type=int, nargs="+", default=LINKS)
    parser.add_argument("--seeds", type=int, default=3, help="from 1 on")
    parser.add_argument("--rounds", type=int, default=9, help="interpreters that are started")
    parser.add_argument("--versus", type=lambda path: [Path(path).resolve()], default=[], metavar="CHECKOUT")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        side, url, meshes, links = options.worker
        work(side, url, int(meshes), int(links))
        return
    sections: dict[str, Callable[[], Iterator[Line]]] = {
        "traffic": lambda: traffic_lines(options),
        "start": lambda: process_lines("start", options),
        "idle": lambda: process_lines("idle", options),
    }
    unknown = set(options.sections) - set(sections)
    if unknown:
        parser.error(f"no section is called {', '.join(sorted(unknown))}: there are {', '.join(sections)}")
    for name in options.sections or sections:
        for line in sections[name]():
            print(json.dumps(line, indent=None if options.json else 2), flush=True)


if __name__ == "__main__":
    main()
