"""Networks in a box: namespaces, bridges, NAT routers and bad cables, with a peer of a mesh in each.

A `Lab` builds them and starts processes in them. On leaving it, whatever happened, processes are ended by their ids and
namespaces deleted by their names, which all begin with `Lab.prefix`. Should the lab itself be killed, the kernel ends
its processes, and the next lab deletes the namespaces that are left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, Self, TypeAlias

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PREFIX = "netlab"
PROGRAMS = ("ip", "iptables", "setpriv", "ss", "sysctl")
FATAL_SIGNALS = (signal.SIGTERM, signal.SIGHUP)
GRACE = 3.0
"""Seconds that a process has to end after SIGTERM."""
POLL = 0.02
"""Seconds between looks at what processes have written. Their output goes to files, which tell of no changes."""

Line: TypeAlias = dict[str, Any]
"""What a process told: "at" in monotonic seconds, the same clock for all processes of a machine, "ev", and more."""


class LabError(Exception):
    """Something could not be built or started."""


def run(*command: str, check: bool = True) -> str:
    """Run a command; its output. Raises LabError with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def until(condition: Callable[[], bool], timeout: float) -> bool:
    """Wait for a condition, at most so many seconds; whether it holds."""
    deadline = time.monotonic() + timeout
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(POLL)
    return holds


def unable(*programs: str) -> str | None:
    """Why no lab can be built here that needs these programs, in one line; None if it can."""
    missing = [name for name in (*PROGRAMS, *programs) if shutil.which(name) is None]
    if missing:
        return f"networks in a box need {', '.join(missing)} (tests/netlab/README.md says where to get them)"
    if os.geteuid() != 0:
        return "networks in a box need root, which makes network namespaces"
    trial = f"{PREFIX}{os.getpid()}-trial"
    try:
        run("ip", "netns", "add", trial)
        run("ip", "link", "add", "eth0", "netns", trial, "type", "veth", "peer", "name", "eth1", "netns", trial)
        run("ip", "netns", "exec", trial, "iptables", "-t", "nat", "-L", "-n")
    except LabError as error:
        return f"network namespaces can't be made here: {error}"
    finally:
        run("ip", "netns", "del", trial, check=False)
    return None


class Namespace:
    """A network namespace."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.lab, self.name = lab, f"{lab.prefix}{name}"
        lab.spaces[name] = self  # first: what is half made is deleted too
        run("ip", "netns", "add", self.name)
        self("ip link set lo up")
        self("sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0", check=False)

    def __call__(self, line: str, *, check: bool = True) -> str:
        """Run a command line in it."""
        return run("ip", "netns", "exec", self.name, "sh", "-c", line, check=check)

    def add_address(self, interface: str, address: str) -> None:
        self(f"ip addr add {address} dev {interface}" + (" nodad" if ":" in address else ""))

    def command(self, *command: str) -> list[str]:
        """The command that runs another in it; the process stays the same."""
        return ["ip", "netns", "exec", self.name, *command]

    def listens(self, place: str) -> bool:
        """Whether somebody listens there, such as ":8080"."""
        return f"{place} " in self("ss -Hltun")


class Process:
    """A process of a lab; stdout and stderr go to files of the lab's folder."""

    def __init__(self, lab: Lab, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        self.name = name
        self.out, self.err = lab.folder / f"{name}.out", lab.folder / f"{name}.err"
        with self.out.open("ab") as out, self.err.open("ab") as err:
            self.popen = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command],
                stdin=subprocess.PIPE, stdout=out, stderr=err, cwd=ROOT, env={**os.environ, **(env or {})},
            )  # fmt: skip
        self.lines: dict[str, list[Line]] = {}
        self._links = 0
        self._read = 0
        lab.processes.append(self)

    @property
    def lives(self) -> bool:
        return self.popen.poll() is None

    def write(self, line: str) -> None:
        """Give it a line; nothing happens if it has ended, which its own lines tell."""
        assert self.popen.stdin
        try:
            self.popen.stdin.write(line.encode() + b"\n")
            self.popen.stdin.flush()
        except BrokenPipeError:
            pass

    def read(self) -> dict[str, list[Line]]:
        """All lines that it has told so far, by their "ev"."""
        with self.out.open("rb") as out:
            out.seek(self._read)
            data = out.read()
        whole = data.rfind(b"\n") + 1
        self._read += whole
        for text in data[:whole].splitlines():
            line = json.loads(text)
            self.lines.setdefault(line["ev"], []).append(line)
            self._links = line.get("links", self._links)
        return self.lines

    def of(self, *kinds: str, since: float = 0) -> list[Line]:
        """Its lines of these kinds, told after a moment."""
        self.read()
        return [line for kind in kinds for line in self.lines.get(kind, ()) if line["at"] >= since]

    def wait(self, kind: str, timeout: float = 30, count: int = 1, since: float = 0) -> list[Line]:
        """Wait for so many lines of a kind, or until it ends; those that came."""
        until(lambda: len(self.of(kind, since=since)) >= count or not self.lives, timeout)
        return self.of(kind, since=since)

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.lives:
            self.popen.send_signal(number)

    def ask_to_end(self) -> None:
        self.kill(signal.SIGCONT)  # a stopped process does not notice
        self.kill(signal.SIGTERM)

    def stop(self) -> None:
        """End it, in the end by force."""
        self.ask_to_end()
        try:
            self.popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.kill()
            self.popen.wait()
        if self.popen.stdin:
            with suppress(BrokenPipeError):
                self.popen.stdin.close()


class PeerProcess(Process):
    """A process of `peer.py`."""

    def __init__(
        self, lab: Lab, name: str, space: Namespace, url: str, env: dict[str, str] | None = None, **options: Any
    ) -> None:
        self.space = space
        self.began = time.monotonic()
        self._id: str | None = None
        given = [f"--{key.replace('_', '-')}={value}" for key, value in options.items()]
        command = space.command(sys.executable, "-m", "tests.netlab.peer", f"--url={url}", *given)
        super().__init__(lab, name, command, env)

    def do(self, what: str, **order: Any) -> None:
        """Tell it what to do; `peer.py` says what it can."""
        self.write(json.dumps({"do": what, **order}))

    @property
    def id(self) -> str:
        """Its peer id, once it has joined."""
        if self._id is None:
            entered = self.wait("entered")
            if not entered:
                said = [line["error"] for line in self.of("ended")] or "nothing within 30 s"
                raise LabError(f"{self.name} did not join: {said}; see {self.err}")
            self._id = entered[0]["id"]
        return self._id

    @property
    def links(self) -> int:
        """How many links it has, by its events."""
        self.read()
        return self._links


class Cable:
    """A cable and the names of its ends: `a` is the peer's, `b` the hub's."""

    def __init__(self, name: str, wire: Process | None) -> None:
        self.name, self.wire = name, wire

    def set(self, direction: str = "both", **values: float) -> None:
        """Change a bad cable: up, down or both ways; `wire.c` lists the keys."""
        assert self.wire is not None, "a good cable can't be made a bad one"
        self.wire.write(f"{self.name} {direction} " + " ".join(f"{key}={value}" for key, value in values.items()))


class Lab:
    """Namespaces, cables and processes that belong together.

    `slack` stretches what is expected of times, for machines that have other things to do.
    """

    def __init__(self, title: str, *, logs: Path | str | None = None, slack: float = 1.0) -> None:
        self.prefix = f"{PREFIX}{os.getpid()}-"
        self.slack = slack
        root = Path(logs or os.environ.get("NETLAB_LOGS") or tempfile.gettempdir())
        root.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{title}-", dir=root)).resolve()
        self.spaces: dict[str, Namespace] = {}
        self.processes: list[Process] = []
        self.peers: dict[str, PeerProcess] = {}
        self._cables = 0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        _delete_left()
        self._handlers = {number: signal.signal(number, _exit) for number in FATAL_SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._handlers[signal.SIGINT] = signal.getsignal(signal.SIGINT)
        for number in self._handlers:  # a second one does not interrupt this
            signal.signal(number, signal.SIG_IGN)
        try:
            self.close()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def close(self) -> None:
        for process in self.processes:
            process.ask_to_end()
        for process in self.processes:
            process.stop()
        for space in self.spaces.values():
            _delete(space.name)
        self.spaces.clear()

    # --- building -----------------------------------------------------------------------------------------------------

    def space(self, name: str) -> Namespace:
        return Namespace(self, name)

    def bridge(self, space: Namespace, name: str, *addresses: str) -> str:
        """A bridge in a namespace that joins the ends of cables."""
        space(f"ip link add {name} type bridge && ip link set {name} up")
        space(f"echo 0 > /sys/class/net/{name}/bridge/multicast_snooping")
        for address in addresses:
            space.add_address(name, address)
        return name

    def cable(
        self, a: Namespace, name: str, b: Namespace, bridge: str | None = None, addresses: Iterable[str] = (),
        *, gateway: str | None = None, far: str | None = None, bad: bool = False,
    ) -> Cable:  # fmt: skip
        """A cable from `a`, where it is called `name`, to `b`: there into a bridge, or with an address of its own."""
        self._cables += 1
        ends = f"cable{self._cables}"
        wire = None
        if bad:
            wire = Process(self, ends, b.command(str(self._wire()), ends))
            if not until(lambda: b"ready" in wire.out.read_bytes() or not wire.lives, 10) or not wire.lives:
                raise LabError(f"{ends}: {wire.err.read_text() or 'the cable is not ready after 10 s'}")
            b(f"ip link set {ends}a netns {a.name}")
            a(f"ip link set {ends}a name {name}")
        else:
            b(f"ip link add {ends}b type veth peer name {name} netns {a.name}")
        a(f"ip link set {name} up txqueuelen 5000")
        b(f"ip link set {ends}b up txqueuelen 5000" + (f" master {bridge}" if bridge else ""))
        for address in addresses:
            a.add_address(name, address)
        if far:
            b.add_address(f"{ends}b", far)
        if gateway:
            a(f"ip {'-6 ' if ':' in gateway else ''}route add default via {gateway}")
        return Cable(ends, wire)

    def lan(self, count: int, *, bad: bool = False, v4: bool = True, v6: bool = False) -> list[Cable]:
        """A hub, a server's namespace "srv" at .2, and `count` peers' p1.. from .11 on; the cables of the peers.

        Nets are 10.9.0.0/24 and fd00:9::/64; only the cables of peers can be bad.
        """
        hub = self.space("hub")
        self.bridge(hub, "br0")
        cables = []
        for name, last in (("srv", 2), *((f"p{i}", 10 + i) for i in range(1, count + 1))):
            addresses = [f"10.9.0.{last}/24"] * v4 + [f"fd00:9::{last}/64"] * v6
            cables.append(self.cable(self.space(name), "eth0", hub, "br0", addresses, bad=bad and name != "srv"))
        return cables[1:]

    def nat(self, number: int, kind: str, wan: Namespace) -> Namespace:
        """A peer's namespace p<number> at 203.0.113.<100 + number>, behind a router of its own, r<number>.

        Kinds: "cone" keeps ports and lets in what was asked for (port-restricted), "full" lets in everything,
        "symmetric" uses a new port for each destination, "public" has no router at all.
        """
        peer = self.space(f"p{number}")
        outside = [f"203.0.113.{100 + number}/24"]
        if kind == "public":
            self.cable(peer, "eth0", wan, "br0", outside, gateway="203.0.113.1")
            return peer
        router = self.space(f"r{number}")
        inside = f"192.168.{number}"
        self.cable(router, "wan", wan, "br0", outside, gateway="203.0.113.1")
        self.cable(peer, "eth0", router, None, [f"{inside}.2/24"], gateway=f"{inside}.1", far=f"{inside}.1/24")
        router("sysctl -qw net.ipv4.ip_forward=1")
        fully = " --random-fully" if kind == "symmetric" else ""
        router(f"iptables -t nat -A POSTROUTING -o wan -j MASQUERADE{fully}")
        if kind == "full":
            router(f"iptables -t nat -A PREROUTING -i wan -p udp -j DNAT --to-destination {inside}.2")
        else:
            router("iptables -A FORWARD -i wan -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
            router("iptables -A FORWARD -i wan -j DROP")
            router("iptables -A INPUT -i wan -p udp -j DROP")
        return peer

    def _wire(self) -> Path:
        """The program for bad cables, compiled when first used."""
        program = self.folder / "wire"
        if not program.exists():
            run("cc", "-O2", "-o", str(program), str(HERE / "wire.c"))
        return program

    # --- servers and peers --------------------------------------------------------------------------------------------

    def serve(
        self, space: str = "srv", host: str = "0.0.0.0", port: int = 8080, *more: str,
        env: dict[str, str] | None = None, name: str = "server",
    ) -> Process:  # fmt: skip
        """A signaling server; `more` are options of `p2pmesh serve`."""
        where = self.spaces[space]
        command = [sys.executable, "-m", "p2pmesh", "serve", "--host", host, "--port", str(port), *more]
        server = Process(self, name, where.command(*command), env)
        places = {"::": ("[::]", "*"), "0.0.0.0": ("0.0.0.0",)}.get(host, (f"[{host}]" if ":" in host else host,))
        until(lambda: any(where.listens(f"{place}:{port}") for place in places) or not server.lives, 20)
        if not server.lives:
            raise LabError(f"the server ended: {server.err.read_text().strip()}")
        return server

    def turn(self, space: str, address: str, *, user: str = "ann:secret") -> Process:
        """A STUN and TURN server (coturn)."""
        where = self.spaces[space]
        options = [
            "-n", "--no-cli", "--no-tls", "--no-dtls", "--lt-cred-mech", "--fingerprint", "--allow-loopback-peers",
            f"--listening-ip={address}", f"--relay-ip={address}", f"--user={user}", "--realm=net.example",
            "--log-file=stdout", "--simple-log", "-v",
            f"--pidfile={self.folder}/turn.pid", f"--userdb={self.folder}/turn.db",
        ]  # fmt: skip
        turn = Process(self, "turn", where.command("turnserver", *options))
        if not until(lambda: where.listens(":3478") or not turn.lives, 10) or not turn.lives:
            raise LabError(f"coturn did not start; see {turn.out}")
        return turn

    def peer(self, space: str, url: str, name: str | None = None, **options: Any) -> PeerProcess:
        """A peer in this namespace; options are those of `peer.py`, and `env`."""
        name = name or space
        self.peers[name] = PeerProcess(self, name, self.spaces[space], url, **options)
        return self.peers[name]


def _exit(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)


def _delete(name: str) -> None:
    run("ip", "netns", "del", name, check=False)
    shutil.rmtree(Path("/etc/netns") / name, ignore_errors=True)


def _delete_left() -> None:
    """Delete the namespaces of labs that were killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}*"):
        found = re.match(rf"{PREFIX}(\d+)-", path.name)
        if found and not Path("/proc", found[1]).exists():
            _delete(path.name)
