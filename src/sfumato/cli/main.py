"""`sfumato VERB ...`: finds the verb, runs it, and turns what went wrong into one line and an exit code.

0 is done, 2 means that the request was wrong, 1 that it failed, 130 that it was interrupted.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from sfumato import __version__
from sfumato.registry import unknown

VERBS = {
    "generate": "make pictures from a prompt",
    "train": "train a model, on the bundled pictures or on your own",
    "evaluate": "measure how well a model paints what it is asked for",
    "reproduce": "make a picture again from the parameters inside it, and compare",
    "samplers": "list the samplers",
    "models": "list the models that ship with sfumato",
    "doctor": "say what this machine and this installation can do",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    verb, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb in ("-V", "--version"):
        print(f"sfumato {__version__}")
        return 0
    if verb not in VERBS:
        return _refused(unknown("command", verb, list(VERBS)))
    try:
        return importlib.import_module(f"sfumato.cli.{verb}").run(rest) or 0
    except ValueError as error:
        return _refused(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        print(f"sfumato: failed: {_line(error)}", file=sys.stderr)
        return 1


def _refused(message: str) -> int:
    print(f"sfumato: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:{width}}  {about}" for name, about in VERBS.items())
    return (
        f"sfumato {__version__}: latent diffusion, whole\n\nusage: sfumato COMMAND [...]\n\n{verbs}\n\n"
        'sfumato COMMAND --help says more. To begin: sfumato generate "a red apple, 3d"'
    )


if __name__ == "__main__":
    sys.exit(main())
