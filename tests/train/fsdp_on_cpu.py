"""`qllava` under FSDP2 on a CPU: accelerate keeps its FSDP for accelerators and would run DDP here. Nothing else is changed, so
that the package's own path (its trainer, accelerate's and transformers' FSDP2, torch's fully_shard over gloo) is what runs.

With $PEAKS, a folder, each process writes there how much memory it has held at most when the model is made, and when it is cut.
"""

import os
import re
from pathlib import Path

import accelerate.accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from qllava.train import engine as engines

init = AcceleratorState.__init__
cut = accelerate.accelerator.fsdp2_prepare_model


def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    fresh = not AcceleratorState._shared_state
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fresh:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


def cut_and_tell(accelerator, model):
    peaks = [peak()]
    model = cut(accelerator, model)
    Path(os.environ["PEAKS"], os.environ["RANK"]).write_text(f"{peaks[0]} {peak()}")
    return model


def peak():
    """MiB. (What getrusage tells begins with what the parent held.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) >> 10


if __name__ == "__main__":
    from qllava.cli import main
    from qllava.train import run

    AcceleratorState.__init__ = init_with_fsdp
    run.launched = lambda cpu: engines.launched(False)
    if os.environ.get("PEAKS"):
        accelerate.accelerator.fsdp2_prepare_model = cut_and_tell
    main()
