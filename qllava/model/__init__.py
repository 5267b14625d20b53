"""From checkpoints to a LLaVA whose right parts train. Knows no trainer."""

import os

# oneDNN keeps a compiled kernel for each shape it has met, 1,024 of them unless told otherwise. Batches of many lengths in
# bfloat16 on a CPU then grow the process by 2 MB a sample, to gigabytes. Read by oneDNN at its first use.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
