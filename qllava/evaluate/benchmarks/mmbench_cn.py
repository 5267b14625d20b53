"""MMBench-CN, dev of 2023-10-03: MMBench in Chinese, with a Chinese request for the letter.

`mmbench_cn/mmbench_dev_cn_20231003.tsv`, where LLaVA's script looks, or under `mmbench/`, where its docs put it; or the hub's
lmms-lab/MMBench (folder `mmbench/cn` or `mmbench_cn`, split `dev`). Facts: LLaVA's scripts/v1_5/eval/mmbench_cn.sh,
docs/Evaluation.md and llava/eval/model_vqa_mmbench.py.
"""

from __future__ import annotations

from functools import partial

from .base import Benchmark
from .mmbench import DIFFERENCES, SERVER, questions, submit

FILE = "mmbench_dev_cn_20231003.tsv"
PLACES = (f"mmbench_cn/{FILE}", f"mmbench/{FILE}")
HUB = ("mmbench/cn", "mmbench_cn/cn", "mmbench_cn")
END = "\n请直接回答选项字母。"

MMBENCH_CN = Benchmark(
    name="mmbench_cn",
    title="MMBench-CN",
    main="accuracy",
    paper={
        model: {"accuracy": value}
        for model, value in {
            "llava-1.5-7b": 58.3,
            "llava-1.5-13b": 63.6,
            "llava-1.5-hd-13b": 61.9,
            "llava-1.5-7b-lora": 58.9,
            "llava-1.5-13b-lora": 61.5,
            "llava-7b": 36.4,
            "instructblip-7b": 23.7,
            "idefics-9b": 25.2,
            "idefics-80b": 38.1,
            "qwen-vl": 7.4,
            "qwen-vl-chat": 56.7,
        }.items()
    },
    questions=partial(questions, places=PLACES, hub=HUB, end=END),
    official=4329,
    max_new_tokens=1024,
    submit=partial(submit, places=PLACES, hub=HUB, name="mmbench_cn"),
    server=SERVER,
    differences=DIFFERENCES,
)
