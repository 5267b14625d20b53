"""The chain of recipes/cluster/reproduce.sbatch with stand-ins for Slurm and the launchers: what is submitted, and what each step
runs. A real Slurm runs it in test_slurm.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from qllava.recipe import load_recipe

SBATCH = ROOT / "recipes" / "cluster" / "reproduce.sbatch"
FAKE = """#!{python}
import json, os, signal, subprocess, sys, time
name = os.path.basename(sys.argv[0])
seen = {{k: v for k, v in os.environ.items() if k.startswith("SLURM_")}}
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, sys.argv[1:], seen]) + "\\n")
if name == "sbatch":
    print(40 + sum(line.startswith('["sbatch"') for line in open(os.environ["CALLS"])), "cluster", sep=";")
if name == "srun":
    words = [w for w in sys.argv[1:]]
    while words[0].startswith("-"):
        words.pop(0)
    os.environ["SLURM_NODEID"] = "1"
    os.execvp(words[0], words)
if name == "python" and "-c" in sys.argv:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
if "HOLD" in os.environ and name == "torchrun":
    sys.exit(subprocess.call(["python", "-u", *sys.argv[sys.argv.index("-m"):]]))
if "HOLD" in os.environ and name == "python":  # a run with a loader, which saves for a while when it is told to stop
    asked, loader = [], os.fork()
    signal.signal(signal.SIGTERM, lambda *_: asked.append(0))
    open(os.environ["CALLS"], "a").write(json.dumps(["ready" if loader else "loader ready", [], {{}}]) + "\\n")
    while not asked:
        time.sleep(0.05)
    time.sleep(3)
    open(os.environ["CALLS"], "a").write(json.dumps([f"told {{len(asked)}}" if loader else "loader told", [], {{}}]) + "\\n")
    os.kill(loader, 9)
    sys.exit(1)
sys.exit(int(os.environ.get("EXIT_" + name, 0)))
"""
COMMANDS = ("sbatch", "srun", "scontrol", "torchrun", "accelerate", "python", "qllava")
RECIPES = [(size, tune) for size in ("7b", "13b") for tune in ("full", "lora", "qlora")]


@pytest.fixture
def job(tmp_path):
    """Runs the file as Slurm would; gives what it did and the calls: [name, words, its SLURM_* variables]."""
    bin_, place, calls = tmp_path / "bin", tmp_path / "place", tmp_path / "calls"
    bin_.mkdir()
    (place / "playground/data/eval").mkdir(parents=True)
    for name in COMMANDS:
        (bin_ / name).write_text(FAKE.format(python=sys.executable))
        (bin_ / name).chmod(0o755)

    def seen():
        found = [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []
        return [call for call in found if not (call[0] == "python" and "-c" in call[1])]

    def begin(*words, **variables):
        calls.unlink(missing_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        environment |= {
            "PATH": f"{bin_}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "CALLS": str(calls), "SLURM_JOB_ID": "7", "SLURM_NNODES": "1",
            "SLURM_CPUS_PER_TASK": "8", "SLURM_JOB_PARTITION": "cpus", "SLURMD_NODENAME": "n1", "SLURM_CONF": "/etc/slurm.conf",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", str(SBATCH), *words], cwd=place, env=environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(*words, **variables):
        process = begin(*words, **variables)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, out, err), seen()

    run.begin, run.seen = begin, seen
    run.place = place
    return run


def verbs(calls):
    """The words after `qllava` in each process that is started, and by what."""
    found = []
    for name, words, _ in calls:
        if name in ("torchrun", "accelerate", "python"):
            found.append((name, *words[words.index("qllava") + 1 :]))
    return found


@pytest.mark.parametrize(("size", "tune"), RECIPES)
def test_the_first_job_submits_the_others_and_looks_at_the_data(job, size, tune):
    done, calls = job(size, tune, "align:max_steps=3", 'data=[{"path":"a b.json"}]')
    assert done.returncode == 0, done.stderr
    sent = [(words, seen) for name, words, seen in calls if name == "sbatch"]
    steps = ["align", "instruct", "evaluate"] if tune == "full" else ["align", "instruct", "merge", "evaluate"]
    before = 7
    for number, (step, (words, seen)) in enumerate(zip(steps, sent, strict=True)):
        name = f"llava15-{size}-align" if step == "align" else f"llava15-{size}-{tune}-{step}"
        assert {f"--job-name={name}", f"--dependency=afterok:{before},singleton", "--kill-on-invalid-dep=yes"} < set(
            words
        )
        assert "--partition=cpus" in words and ("--gpus-per-node=8" in words) == (step != "merge")
        assert f"--cpus-per-task={8 if step == 'merge' else 64}" in words
        assert words[-6:] == [
            str(SBATCH),
            f"--step={step}",
            size,
            tune,
            "align:max_steps=3",
            'data=[{"path":"a b.json"}]',
        ]
        assert f"{step} is job {41 + number}." in done.stdout and seen == {"SLURM_CONF": "/etc/slurm.conf"}
        before = 41 + number
    folder, data = f"llava15-{size}", 'data=[{"path":"a b.json"}]'
    assert verbs(calls) == [
        ("python", "check", f"{folder}/align", "max_steps=3", data),
        ("python", "check", f"{folder}/instruct-{tune}", f"projector=runs/{folder}/align", data),
    ]


def test_published_data_is_compared_with_what_was_published(job):
    done, calls = job("13b", "lora", EVAL_ROOT="none")
    assert done.returncode == 0, done.stderr
    for stage, mix in (("align", "llava-558k"), ("instruct-lora", "llava-665k")):
        (source,) = load_recipe(f"llava15-13b/{stage}").data
        (seen,) = [v for v in verbs(calls) if v[1:3] == ("data", "verify") and mix in v]
        assert seen[3] == source.path and seen[4:6] == (
            "--image-root",
            str(Path(source.path).parent / source.image_root),
        )
    assert [v[1] for v in verbs(calls)] == ["data", "data", "check", "check"]


def test_a_first_job_that_was_queued_again_submits_nothing(job):
    done, calls = job("7b", "lora", SLURM_RESTART_COUNT="1")
    assert done.returncode == 0 and "sbatch" not in {c[0] for c in calls} and "start 2" in done.stdout


def test_options_of_the_jobs(job):
    wanted = {"GPUS": "4", "NODES": "2", "CPUS": "20", "OPTIONS": "--time=9 --mem=0", "GPU_OPTIONS": "--partition=a100"}
    _, calls = job("7b", "lora", SLURM_JOB_ACCOUNT="me", SLURM_JOB_QOS="fast", **wanted)
    for words in (w for n, w, _ in calls if n == "sbatch"):
        assert {"--account=me", "--qos=fast", "--time=9", "--mem=0"} < set(words)
        on_gpus = {"--gpus-per-node=4", "--nodes=2", "--cpus-per-task=20", "--partition=a100"}
        assert (on_gpus & set(words)) == (set() if "--step=merge" in words else on_gpus)


@pytest.mark.parametrize(
    "words", [("9b", "lora"), ("7b", "task-lora"), ("7b",), (), ("7b", "lora", "fast"), ("7b", "lora", "output_dir=x"),
              ("--step=fly", "7b", "lora")],
)  # fmt: skip
def test_wrong_words_end_with_the_usage(job, words):
    done, calls = job(*words)
    assert done.returncode == 2 and not calls
    assert "sbatch recipes/cluster/reproduce.sbatch 7b|13b full|lora|qlora [key=value …]" in done.stderr


def test_evaluation_data_that_is_not_there_is_told_first(job):
    done, calls = job("7b", "lora", EVAL_ROOT="elsewhere")
    assert done.returncode == 2 and not calls and "no folder elsewhere" in done.stderr


@pytest.mark.parametrize(("size", "tune"), RECIPES)
def test_training(job, size, tune):
    words = (size, tune, "align:max_steps=3", "instruct:lora.r=4", "seed=1")
    folder = f"llava15-{size}"
    done, calls = job("--step=align", *words)
    assert done.returncode == 0, done.stderr
    train = ("train", f"{folder}/align", "max_steps=3", "seed=1", f"output_dir=runs/{folder}/align")
    assert verbs(calls) == [("torchrun", *train)]
    recipe = f"{folder}/instruct-{tune}"
    done, calls = job("--step=instruct", *words, RUNS="else", SLURM_NNODES="2")
    train = ("train", recipe, f"projector=else/{folder}/align", "lora.r=4", "seed=1", f"output_dir=else/{recipe}")
    assert verbs(calls) == [("accelerate" if tune == "full" else "torchrun", *train)]
    (srun,) = [w for n, w, _ in calls if n == "srun"]
    assert srun[:4] == ["--nodes=2", "--ntasks=2", "--cpus-per-task=8", "--kill-on-bad-exit=1"]
    if tune != "full":
        (launch,) = [w for n, w, _ in calls if n == "torchrun"]
        assert launch[:6] == ["--nnodes", "2", "--nproc_per_node", "8", "--rdzv_backend", "c10d"]


@pytest.mark.parametrize("engine", ["fsdp2", "zero2", "zero3", "zero3-offload"])
def test_accelerate_understands_the_launch(job, engine, monkeypatch):
    """Its own reading of words and file: torchrun on both nodes, and the engine in the environment."""
    from accelerate.commands import launch
    from torch.distributed import run

    if engine != "fsdp2" and not launch.is_deepspeed_available():
        pytest.skip("DeepSpeed is not installed (make test builds it)")
    _, calls = job("--step=instruct", "7b", "full", ENGINE=engine, SLURM_NNODES="2", SLURM_JOB_ID="12")
    (words,) = [w for n, w, _ in calls if n == "accelerate"]
    seen = []
    monkeypatch.setattr(run, "run", lambda args: seen.append((args, dict(os.environ))))
    launch.launch_command(launch.launch_command_parser().parse_args(words[1:]))
    ((args, environment),) = seen
    assert (args.nnodes, args.nproc_per_node, args.node_rank, args.rdzv_backend) == ("2", "8", 1, "c10d")
    assert args.rdzv_endpoint == f"{socket.gethostname()}:20012"
    assert args.module and args.training_script == "qllava" and args.training_script_args[:1] == ["train"]
    if engine == "fsdp2":
        assert environment["ACCELERATE_USE_FSDP"] == "true" and environment["FSDP_VERSION"] == "2"
    else:
        assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
        assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == engine[4]


def test_a_checkpoint_is_gone_on_with_and_what_is_done_is_passed_over(job):
    out = job.place / "runs/llava15-7b/instruct-lora"
    (out / "checkpoint-50").mkdir(parents=True)
    _, calls = job("--step=instruct", "7b", "lora")
    assert verbs(calls)[0][-1] == "--resume"
    (out / "final").mkdir()
    done, calls = job("--step=instruct", "7b", "lora")
    assert (
        verbs(calls) == [("python", "verify", "runs/llava15-7b/instruct-lora/final")] and "passed over" in done.stdout
    )
    done, calls = job("--step=instruct", "7b", "lora", EXIT_python="1")  # damaged
    assert done.returncode == 1 and len(verbs(calls)) == 1


def test_merge_and_evaluate(job):
    trained = "runs/llava15-7b/instruct-qlora"
    _, calls = job("--step=merge", "7b", "qlora")
    assert verbs(calls) == [("python", "merge", trained, "--out", f"{trained}-merged")]
    (job.place / f"{trained}-merged").mkdir(parents=True)
    _, calls = job("--step=merge", "7b", "qlora")
    assert verbs(calls) == [("python", "verify", f"{trained}-merged")]
    for tune, model, published in (
        ("qlora", f"{trained}-merged", "llava-1.5-7b-lora"), ("full", "runs/llava15-7b/instruct-full", "llava-1.5-7b"),
    ):  # fmt: skip
        _, calls = job("--step=evaluate", "7b", tune)
        out = f"runs/eval/llava15-7b-{tune}"
        assert verbs(calls) == [
            ("torchrun", "eval", model, "--benchmark", "present", "--root", "playground/data/eval", "--out", out),
            ("python", "scoreboard", out, "--expect", published, "--out", f"runs/scoreboard/llava15-7b-{tune}"),
        ]
    _, calls = job("--step=evaluate", "7b", "lora", EVAL_ROOT="none")
    assert not calls


def test_a_step_that_fails_fails(job):
    for step, name in (("align", "torchrun"), ("merge", "python"), ("data", "python")):
        done, _ = job(f"--step={step}", "7b", "lora", **{f"EXIT_{name}": "3"})
        assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM], ids=["before the time limit", "cancelled"])
def test_a_signal_stops_the_run_and_only_the_time_limit_queues_it_again(job, number):
    """Slurm sends SIGTERM to what is cancelled; what is preempted it queues again by itself."""
    process = job.begin("--step=align", "7b", "lora", HOLD="yes")
    try:
        end = time.monotonic() + 30
        while len({"ready", "loader ready"} & {c[0] for c in job.seen()}) < 2:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        process.send_signal(number)
        out, _ = process.communicate(timeout=30)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    last = [(c[0], c[1]) for c in job.seen()][job.seen().index(["ready", [], {}]) :]
    again = [("scontrol", ["requeue", "7"])] if number == signal.SIGUSR1 else []
    assert [c for c in last if "ready" not in c[0]] == [("told 1", []), *again]
    assert process.returncode == 1 and ("Queueing job 7 again" in out) == bool(again)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck():
    done = subprocess.run(["shellcheck", str(SBATCH)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
