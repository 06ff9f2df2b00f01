"""A page to play with: draw digits, or give it an image, and watch an agent attend, glimpse and name.

python train/demo.py                        # then open the address that it prints
python train/demo.py runs/x --port 0 --open  # an agent of yours
"""

from __future__ import annotations

import webbrowser
from dataclasses import dataclass
from typing import Annotated

import tyro

from hsal_env.command_line import run_command
from hsal_env.errors import ConfigError


@dataclass(frozen=True)
class Args:
    """Serve a page to play with, to this machine alone."""

    agent: Annotated[str, tyro.conf.Positional] = "mnist-multiset"
    """a bundled agent's name, the folder of a run, or the path of a checkpoint.pt; the page offers the other bundled ones, too"""
    host: str = "127.0.0.1"
    """address to listen on; any other than this machine's own lets others in, and there is no password"""
    port: int = 8000
    """0: any that is free"""
    open: bool = False
    """open the page in the browser"""
    trust_names: bool = False
    """import and call any package.module:Name that the checkpoint names; only for files of people you trust"""


def main(args: Args) -> None:
    """Load, listen, serve."""
    try:
        import flask  # noqa: F401
    except ImportError as error:
        raise ConfigError('The page needs Flask: pip install "hsal[demo]"') from error
    from agents.demo.player import Player
    from agents.demo.server import create_app, listen

    server, address = listen(create_app(Player(args.agent, args.trust_names), args.host), args.host, args.port)
    print(f"Serving on {address} (Ctrl-C stops)", flush=True)
    if args.open:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print()
    finally:
        server.server_close()


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
