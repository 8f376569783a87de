"""Run experiments in networks in a box: `python -m tests.netlab nat --sets none stun`.

One JSON object is printed for each case: its figures, and under "failed" what was due and did not come. The exit status
is 0 if nothing failed, 1 if something did, 2 where no networks can be built.
"""

from __future__ import annotations

import argparse
import json
import sys
from types import ModuleType

from tests.netlab import addresses, changes, lan, links, nat, proxy, reach, soak
from tests.netlab.lab import unable
from tests.netlab.verdict import attempt

EXPERIMENTS: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (lan, links, nat, reach, changes, addresses, proxy, soak)
}
ALL = [name for name in EXPERIMENTS if name != "soak"]
"""What `all` runs; the soak takes as long as one wants."""
PROGRAMS = {
    "changes": ["conntrack", "turnserver"], "links": ["cc"], "nat": ["turnserver"], "reach": ["turnserver"],
    "proxy": ["nginx", "openssl"],
}  # fmt: skip
"""What experiments need besides what every lab does."""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--logs", help="where to keep what processes print; $NETLAB_LOGS, or a temporary folder")
    common.add_argument("--slack", type=float, default=1.0, help="stretch the limits of times, on a busy machine")
    common.add_argument("--list", action="store_true", help="print the names of the cases, and run nothing")
    parser = argparse.ArgumentParser(
        prog="python -m tests.netlab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="experiment", required=True)
    for name, module in EXPERIMENTS.items():
        purpose = (module.__doc__ or "").partition("\n")[0]
        module.arguments(commands.add_parser(name, parents=[common], help=purpose, description=module.__doc__))
    commands.add_parser("all", parents=[common], help="all of them but the soak, as they are without options")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    chosen = ALL if options.experiment == "all" else [options.experiment]
    if not options.list:
        why = unable(*sorted({program for name in chosen for program in PROGRAMS.get(name, [])}))
        if why is not None:
            sys.stderr.write(f"{why}\n")
            return 2
    failed = 0
    for name in chosen:
        its = options if options.experiment == name else parse([name])
        for title, case in EXPERIMENTS[name].cases(its).items():
            if options.list:
                sys.stdout.write(f"{title}\n")
                continue
            report = attempt(title, case, logs=options.logs, slack=options.slack)
            failed += bool(report.failed)
            sys.stdout.write(json.dumps({"experiment": name, **report.as_json()}) + "\n")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
