"""What an error of a run means for it: where its last good state is, how to go on, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import console
from ..errors import RunError, UserError, plain
from ..model.device import ran_out
from .checkpoint import newest_good, number_of, set_aside
from .guards import BadStep, Diverged


@contextmanager
def explained(trainer: Any, out: Path, smaller: Callable[[], str]) -> Iterator[None]:
    """Adds to an error of the run where the last good state is and how to go on; keeps that state first.

    Args:
        smaller: says, after the memory ran out, which fields would make the run fit.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise RunError(how_to_go_on(out)) from None
    except UserError as error:  # a sample that could not be made
        raise UserError(
            f"{plain(str(error))}\n{kept(out)} Mend that and go on with --resume, or begin with on_bad=drop, which leaves such "
            "samples out."
        ) from None
    except RunError as error:
        if isinstance(error, BadStep):
            trainer.keep_good_state()
        if isinstance(error, Diverged) and trainer.args.should_save:
            for folder in [c for c in out.glob("checkpoint-*") if number_of(c) > trainer.divergence.good]:
                console.note(f"{folder} was written after all was well; it is now {set_aside(folder, 'diverged')}.")
        if isinstance(error, BadStep | Diverged):  # which all processes come upon alike
            trainer.accelerator.wait_for_everyone()
        raise RunError(f"{plain(str(error))}\n{kept(out)}") from None
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        step, first = trainer.state.global_step + 1, str(error).splitlines()[0] if str(error) else "MemoryError"
        try:
            advice = smaller()
        except Exception as failed:  # whatever it is, it must not hide what happened
            advice = f"(No smaller sizes could be worked out: {plain(str(failed))[:200]})"
        raise RunError(f"Out of memory in step {step} ({first[:200]}).\n{advice}\n{kept(out)}") from None


def kept(out: Path) -> str:
    found, _ = newest_good(out)
    return f"The last good checkpoint is {found}." if found else f"No checkpoint was saved in {out}."


def how_to_go_on(out: Path) -> str:
    found, _ = newest_good(out)
    if found is None:
        return f"Interrupted before the first checkpoint; nothing was saved in {out}."
    return f"Interrupted. The last checkpoint is {found}. Go on with the same command and --resume."
