"""`sidestep keygen`: CURVE keys, for trainers that reach their daemon over TCP."""

from __future__ import annotations

import os
from typing import Annotated

import typer


def keygen(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="The folder of keys: a new one, or with --client.")
    ],
    client: Annotated[
        str | None,
        typer.Option(
            "--client",
            metavar="NAME",
            show_default=False,
            help="Add a client called NAME to the keys in DIR.",
        ),
    ] = None,
) -> None:
    """Make the keys that a daemon and its clients need for TCP.

    `sidestep keygen DIR` makes a folder for the daemon's machine, with the keys of one client in
    it; `sidestep keygen DIR --client NAME` adds another client. Nothing is ever overwritten.
    """
    from ..peers.key_files import add_client, make_folder

    folder = os.path.abspath(directory)
    if client is None:
        make_folder(folder)
        print(_MADE.format(folder=folder))
    else:
        print(_ADDED.format(folder=folder, name=client, trainer=add_client(folder, client)))


_MADE = """\
Made the keys of a daemon and of one client in {folder}.
The daemon: set `keys: {folder}` and `endpoint: tcp://ADDRESS:PORT` under `sidecar:`,
  or SIDESTEP_KEYS and SIDESTEP_ENDPOINT.
A trainer that sees this folder: SIDESTEP_KEYS={folder} SIDESTEP_ENDPOINT=tcp://HOST:PORT.
A trainer on another machine: sidestep keygen {folder} --client NAME
Show nobody a file that ends with .secret."""

_ADDED = """\
The client {name} may connect now: {folder}/clients/{name}.public lists it.
Move its keys to the trainer's machine, and say there where they are:
  scp -rp {trainer} MACHINE:KEYS && rm -r {trainer}
  SIDESTEP_KEYS=KEYS SIDESTEP_ENDPOINT=tcp://HOST:PORT
To shut it out: rm {folder}/clients/{name}.public"""
