"""`python -m p2pmesh`: the same as the `p2pmesh` command."""

from p2pmesh.cli import main

if __name__ == "__main__":
    main(prog_name="p2pmesh")
