"""Two hosts: network namespaces with addresses and names of their own, torchrun's rendezvous between them, a disk that both see."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT
from launching import end_all, environment_of, losses_of, until, values_of, words_of

from qllava.api import train, verify
from qllava.recipe import resolve_recipe
from qllava.train.checkpoint import newest_good, number_of

pytestmark = pytest.mark.slow
TIMEOUT = 20  # seconds; ddp_timeout
SLACK = 45  # for torchrun to end, and a machine that does other things as well


def ip(*words):
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


class Host:
    def __init__(self, number, names):
        self.names = names  # an /etc/hosts
        self.number, self.space, self.card = (
            number,
            f"qllava-{os.getpid()}-{number}",
            f"v{os.getpid() % 100000}-{number}",
        )
        self.address = f"10.213.77.{number + 1}"
        ip("netns", "add", self.space)
        ip("-n", self.space, "link", "set", "lo", "up")

    def start(self, recipe, log, *more, before=""):
        """torchrun with one process, as one would start it here by hand; `before` is done first, in mounts of its own."""
        words = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "10.213.77.1:29431", "--rdzv-id", "qllava", "--local-addr", self.address,
            "-m", "qllava", "train", str(recipe), *more,
        ]  # fmt: skip
        named = [
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'{before} mount --bind {self.names} /etc/hosts; echo "$0" > /proc/sys/kernel/hostname; exec "$@"',
            f"host{self.number}",
        ]
        with log.open("a") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.space, *named, *words], stdout=file, stderr=file, cwd=ROOT,
                env=environment_of("ddp") | {"GLOO_SOCKET_IFNAME": self.card},
            )  # fmt: skip

    def kill(self):
        """Every process on it, at once."""
        for number in ip("netns", "pids", self.space).split():
            os.kill(int(number), signal.SIGKILL)

    def link(self, state):
        ip("-n", self.space, "link", "set", self.card, state)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    if os.geteuid():
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None and os.environ.get("QLLAVA_INSTALL") == "1":
        subprocess.run(["apt-get", "install", "-y", "iproute2"], check=True, capture_output=True)
    if shutil.which("ip") is None:
        pytest.skip("network namespaces need iproute2 (QLLAVA_INSTALL=1 installs it)")
    names, found = tmp_path_factory.mktemp("etc") / "hosts", []
    names.write_text("127.0.0.1 localhost\n10.213.77.1 host0\n10.213.77.2 host1\n")
    try:
        try:
            found += [Host(0, names)]
            found += [Host(1, names)]
            one, two = found
            ip(
                "link",
                "add",
                one.card,
                "netns",
                one.space,
                "type",
                "veth",
                "peer",
                "name",
                two.card,
                "netns",
                two.space,
            )
            for host in found:
                ip("-n", host.space, "addr", "add", f"{host.address}/24", "dev", host.card)
                host.link("up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"this machine makes no network namespaces: {error.stderr.strip()}")
        yield found
    finally:
        for host in found:
            host.kill()
            ip("netns", "del", host.space)


@pytest.fixture
def recipe(recipe_values, tmp_path):
    def write(**more):
        values = {
            "per_device_train_batch_size": 1,
            "save_steps": 2,
            "lr_scheduler_type": "constant",
            "ddp_timeout": TIMEOUT,
        }
        values = values_of(recipe_values, "lora", **values | more)
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return path, values

    return write


def finish(hosts, recipe, tmp_path, name, *more):
    """Runs the recipe on all hosts to its end; what each said."""
    logs = [tmp_path / f"{name}-{host.number}" for host in hosts]
    started = [host.start(recipe, log, *more) for host, log in zip(hosts, logs, strict=True)]
    try:
        codes = [process.wait(timeout=240) for process in started]
    finally:
        for process in started:
            end_all(process)
    assert codes == [0] * len(codes), "".join(log.read_text()[-3000:] for log in logs)
    return [words_of(log.read_text()) for log in logs]


def alone(values, tmp_path, steps):
    """The losses of the same run in one process."""
    out = tmp_path / "alone"
    train(resolve_recipe({**values, "output_dir": str(out), "max_steps": steps}))
    return losses_of(out)


def test_two_hosts_equal_one_process(hosts, recipe, tmp_path):
    path, values = recipe(max_steps=4)
    first, second = finish(hosts, path, tmp_path, "log")
    assert losses_of(tmp_path / "run") == pytest.approx(alone(values, tmp_path, 4), rel=2e-4)
    verify(tmp_path / "run")
    assert first.count("What trains") == 1 and "What trains" not in second


@pytest.mark.parametrize(
    ("lost", "how"),
    [(1, "killed"), (1, "unplugged"), (0, "killed")],
    ids=["killed", "unplugged", "the first one killed"],
)
def test_a_host_that_is_lost(hosts, recipe, tmp_path, lost, how):
    path, values = recipe(max_steps=2000)
    logs = [tmp_path / f"log-{host.number}" for host in hosts]
    started = [host.start(path, log) for host, log in zip(hosts, logs, strict=True)]
    left = started[1 - lost]
    try:
        until(lambda: (tmp_path / "run" / "checkpoint-2").is_dir(), left, logs[1 - lost])
        hosts[lost].kill() if how == "killed" else hosts[lost].link("down")
        since = time.monotonic()
        assert left.wait(timeout=TIMEOUT + SLACK) not in (0, -signal.SIGKILL)
        print(f"ended after {time.monotonic() - since:.1f} s")
    finally:
        for host, process in zip(hosts, started, strict=True):
            host.kill()
            end_all(process)
        hosts[lost].link("up")
    text = words_of(logs[1 - lost].read_text())
    assert text.count(f"Error: process {lost} on host{lost} has ended without a word") == 1, logs[1 - lost].read_text()[
        -6000:
    ]
    assert "--resume" in text and f"[rank{1 - lost}]: Traceback" not in text
    found, complaints = newest_good(tmp_path / "run")
    assert found is not None and not complaints
    steps = number_of(found) + 2
    finish(hosts, path, tmp_path, "again", "--resume", f"max_steps={steps}")
    got = losses_of(tmp_path / "run")
    assert sorted(got) == list(range(1, steps + 1))
    assert got == pytest.approx(alone(values, tmp_path, steps), rel=1e-3)


@pytest.mark.parametrize(
    ("apart", "words"),
    [("run", "file system that all hosts share"), ("images", "0.png")],
    ids=["output_dir", "the pictures"],
)
def test_hosts_that_do_not_share(hosts, recipe, tmp_path, apart, words):
    """The second one has an empty file system of its own in the folder's place; both say what is wrong there."""
    path, _ = recipe(max_steps=2)
    (tmp_path / apart).mkdir(exist_ok=True)
    logs = [tmp_path / f"log-{host.number}" for host in hosts]
    first = hosts[0].start(path, logs[0])
    second = hosts[1].start(path, logs[1], before=f"mount -t tmpfs none {tmp_path / apart};")
    try:
        assert first.wait(timeout=120) != 0 and second.wait(timeout=60) != 0
    finally:
        end_all(first)
        end_all(second)
    for log in logs:
        text = words_of(log.read_text())
        assert text.count("Error: process 1 on host1: ") == 1 and words in text, log.read_text()[-6000:]
