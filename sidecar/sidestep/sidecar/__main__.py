"""Where the command `sidestep` begins, also as `python -m sidestep.sidecar`."""

from __future__ import annotations

import io
import sys

from sidestep.proto import SidestepError

_BASE_MODULES = frozenset({"msgpack", "zmq"})  # every install has them, the bare one too


def main() -> None:
    """Run the command line; what an extra would bring is asked for in words, not in a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a tag may have what the terminal cannot show
    try:
        from .cli.app import app

        app(prog_name="sidestep")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if not module or module == "sidestep":
            raise  # ours: a fault of this program, which a traceback explains better
        _fail(f"the module {module!r} is missing. Install it with:\n  {_remedy(module)}")
    except SidestepError as error:
        _fail(str(error))


def _remedy(module: str) -> str:
    if module in _BASE_MODULES:
        return "pip install --force-reinstall sidestep"
    extra = {"wandb": "wandb", "pyarrow": "parquet"}.get(module, "sidecar")
    return f"pip install 'sidestep[{extra}]'"


def _fail(message: str) -> None:
    print(f"sidestep: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
