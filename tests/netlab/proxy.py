"""`p2pmesh serve` behind nginx, which ends TLS: limits for each address, and what the proxy cuts when it is idle."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping

from tests.netlab.lab import Lab, LabError, PeerProcess, Process, run, until
from tests.netlab.verdict import Case, Report, all_entered, judge_broadcasts

CONFIG = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 256; }}
http {{
  access_log {folder}/nginx.access;
  client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c;
  uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
  server {{
    listen 443 ssl; ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
    location / {{
      proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade"; proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_read_timeout {idle}s; proxy_send_timeout {idle}s;
    }}
  }}
}}
"""
URL = "wss://10.9.0.2"
WATCH = 130.0
"""Seconds that idle connections are watched: twice what many proxies wait for, and a bit."""


def build(lab: Lab, count: int, idle: int, *server: str) -> dict[str, str]:
    """Peers, nginx and a server with these options; the environment with which peers trust the proxy."""
    lab.lan(count)
    folder = lab.folder
    run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
        "-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem",
        "-subj", "/CN=10.9.0.2", "-addext", "subjectAltName=IP:10.9.0.2",
    )  # fmt: skip
    (folder / "nginx.conf").write_text(CONFIG.format(folder=folder, idle=idle))
    folder.chmod(0o755)  # nginx's workers are nobody
    lab.serve("srv", "127.0.0.1", 8080, *server)
    where = lab.spaces["srv"]
    nginx = Process(lab, "nginx", where.command("nginx", "-c", f"{folder}/nginx.conf", "-p", str(folder)))
    if not until(lambda: where.listens(":443") or not nginx.lives, 20) or not nginx.lives:
        raise LabError(f"nginx did not start; see {nginx.err}")
    return {"SSL_CERT_FILE": f"{folder}/cert.pem"}


def joined(peer: PeerProcess) -> bool:
    """Whether it is let in; false once it was told that it is not."""
    until(lambda: bool(peer.of("entered", "ended")), 40)
    return bool(peer.of("entered"))


def shared(lab: Lab, report: Report) -> None:
    """Without a trusted proxy all customers come from one address, and share its limit."""
    trust = build(lab, 5, 60, "--clients-per-address", "3", "--proxy-headers", "none")
    peers = [lab.peer(f"p{i}", URL, env=trust) for i in range(1, 6)]
    report["joined"] = [peer.name for peer in peers if joined(peer)]
    report.due(len(report["joined"]) == 3, "not as many joined as one address may")
    refused = [line["error"] for peer in peers for line in peer.of("ended")]
    report["refused"] = refused
    told = [error for error in refused if "address" in error]
    report.due(len(told) == 2, "those that were refused were not told that it was their address")
    plain = lab.peer("p1", URL, "untrusting")
    plain.wait("ended", 30)
    untrusted = [line["error"] for line in plain.of("ended")]
    report["untrusted"] = untrusted
    report.due(bool(untrusted) and "certificate" in untrusted[0], "an unknown certificate is not named as the cause")


def customers(lab: Lab, report: Report) -> None:
    """Behind a trusted proxy each customer has a limit of its own; headers of the customer's are not believed."""
    trust = build(lab, 5, 60, "--clients-per-address", "2", "--proxy-headers", "127.0.0.1")
    peers = [lab.peer(f"p{i}", URL, env=trust) for i in range(1, 6)]
    report["joined"] = [peer.name for peer in peers if joined(peer)]
    report.due(len(report["joined"]) == 5, "customers of their own addresses were refused")
    more = [lab.peer("p1", URL, f"p1.{n}", env=trust) for n in (1, 2)]
    second = [joined(peer) for peer in more]
    report["more_of_p1"] = second
    report.due(sum(second) == 1, "the limit of one address does not hold for each customer")


def idle(seconds: int) -> Case:
    """nginx cuts connections over which nothing comes for so many seconds. Peers that lose theirs join again."""

    def case(lab: Lab, report: Report) -> None:
        trust = build(lab, 4, seconds)
        peers = [lab.peer(f"p{i}", URL, env=trust) for i in range(1, 5)]
        began = all_entered(peers)
        time.sleep(WATCH)
        for peer in peers:
            peer.do("broadcast", count=1, tag="end")
        for peer in peers:
            peer.wait("broadcast_done", 70)
        judge_broadcasts(report, peers, "end")
        down = [[(round(x["at"] - began, 1), x["reason"]) for x in peer.of("TransportDown")] for peer in peers]
        report["down"] = down
        report["up"] = [[round(x["at"] - began, 1) for x in peer.of("TransportUp")] for peer in peers]
        report["links"] = [peer.links for peer in peers]
        if seconds >= 60:
            report.due(not any(down), "idle connections to the server were cut")

    return case


CASES: dict[str, Case] = {"shared": shared, "customers": customers, "idle60": idle(60), "idle20": idle(20)}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], metavar="CASE", help=", ".join(CASES))


def cases(options: argparse.Namespace) -> Mapping[str, Case]:
    return {name: CASES[name] for name in options.cases or CASES}
