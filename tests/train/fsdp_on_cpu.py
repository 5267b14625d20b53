"""`qllava` under FSDP2 on a CPU: accelerate keeps its FSDP for accelerators and would run DDP here. Nothing else is changed, so
that the package's own path (its trainer, accelerate's and transformers' FSDP2, torch's fully_shard over gloo) is what runs.
"""

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from qllava.train import run
from qllava.train.engine import Engine, launched_processes

init = AcceleratorState.__init__


def init_with_fsdp(self, *args, fsdp_plugin=None, **kwargs):
    fresh = not AcceleratorState._shared_state
    init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fresh:
        self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.fsdp_plugin = fsdp_plugin


if __name__ == "__main__":
    from qllava.cli import main

    AcceleratorState.__init__ = init_with_fsdp
    run.launched = lambda cpu: Engine("fsdp2", launched_processes())
    main()
