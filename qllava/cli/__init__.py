"""The door: one short function a verb. Each reads its arguments, calls `qllava.api`, and shows what came back."""

from __future__ import annotations

import os
import signal
import sys

from .. import console
from ..errors import PeerError, RunError, UserError, plain, refused

from . import training  # isort: skip  # the order of the imports is the order of the verbs in --help
from . import samples  # isort: skip
from . import data  # isort: skip
from . import artifacts  # isort: skip
from . import scores  # isort: skip
from . import studies  # isort: skip
from . import answers  # isort: skip
from .door import app

__all__ = ["answers", "app", "artifacts", "data", "main", "samples", "scores", "studies", "training"]


def quiet() -> None:
    """Keeps the libraries' own notices off the terminal; set QLLAVA_VERBOSE to see them."""
    if os.environ.get("QLLAVA_VERBOSE"):
        return
    import logging
    import warnings

    for name, value in {
        "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_NO_TQDM": "1", "TQDM_DISABLE": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    for name in ("bitsandbytes", "accelerate", "trl", "torch"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Exit codes: 0 done, 1 what was run or checked failed, 2 the command or its input is wrong."""
    quiet()
    signal.signal(signal.SIGTERM, _terminated)  # so that what is half written is cleared away
    try:
        app(args=arguments, standalone_mode=True)
    except PeerError as error:
        _fail(error, error.code) if error.loud else sys.exit(error.code)
    except UserError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except OSError as error:
        _fail(refused(error), 1)
    except KeyboardInterrupt:
        _fail("Interrupted.", 1)


def _terminated(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _fail(error: object, code: int) -> None:
    console.error(plain(str(error)))
    sys.exit(code)
