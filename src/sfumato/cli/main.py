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
    "evaluate": "measure how well a model paints what it is asked for, or its first stage",
    "plan": "measure what a training will take: time, memory, disk",
    "report": "show a run on one page: curves, pictures, settings",
    "data": "look at a folder of pictures before training",
    "average": "choose the length of the average of the weights after a training",
    "encode": "compute the latents of a folder of pictures once, for the trainings to come",
    "reconstruct": "show what a first stage gives back of pictures",
    "reproduce": "make a picture again from the parameters inside it, and compare",
    "inspect": "say what model a file holds, and how that is known",
    "convert": "write a model as another program's files",
    "samplers": "list the samplers",
    "models": "list the models that ship with sfumato",
    "doctor": "say what this machine and this installation can do",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    verb, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = _run(verb, rest)
        sys.stdout.flush()  # where a reader that has gone can still be noticed
        return code
    except ValueError as error:
        code, message = 2, _line(error)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    except (OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        code, message = 1, f"failed: {_line(error)}"
    print(f"sfumato: {message}", file=sys.stderr)
    return code


def _run(verb: str, arguments: list[str]) -> int:
    if verb in ("-h", "--help", "help"):
        print(_help())
        return 0
    if verb in ("-V", "--version"):
        print(f"sfumato {__version__}")
        return 0
    if verb not in VERBS:
        raise ValueError(unknown("command", verb, list(VERBS)))
    return importlib.import_module(f"sfumato.cli.{verb}").run(arguments)


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
