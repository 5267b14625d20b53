"""`qllava` under FSDP2 on a CPU: accelerate keeps its FSDP for accelerators and would run DDP here. Nothing else is changed, so
that the package's own path (its trainer, accelerate's and transformers' FSDP2, torch's fully_shard over gloo) is what runs.

With $PEAKS, a folder, each process writes there how much memory (MiB) it has held at most before the model is cut, what it holds
then, and the most while it is cut: `cut-RANK`; and the same of what is saved being gathered: `gathered-RANK`.
"""

import os
import re
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from qllava.train import engine as engines
from qllava.train.trainer import LlavaTrainer

init = AcceleratorState.__init__


def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    fresh = not AcceleratorState._shared_state
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fresh:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def telling(name, function):
    def told(*args):
        before = held("VmHWM")
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        now, result = held("VmRSS"), function(*args)
        Path(os.environ["PEAKS"], f"{name}-{os.environ['RANK']}").write_text(f"{before} {now} {held('VmHWM')}")
        return result

    return told


def held(kind):
    """(What getrusage tells begins with what the parent held.)"""
    return int(re.search(rf"{kind}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10


if __name__ == "__main__":
    from qllava.cli import main
    from qllava.train import keeping, run

    if "ACCELERATE_USE_FSDP" in os.environ:
        AcceleratorState.__init__ = init_with_fsdp
        run.launched = lambda cpu: engines.launched(False)
    if os.environ.get("PEAKS"):
        if engines.launched(False).name == "fsdp2":
            LlavaTrainer._prepare_for_training = telling("cut", LlavaTrainer._prepare_for_training)
        keeping.send_pieces = telling("cut", keeping.send_pieces)
        keeping.whole_state = telling("gathered", keeping.whole_state)
    main()
