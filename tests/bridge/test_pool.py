"""The pool is compared with stepping the same environment in this process, and workers fail in many ways."""

import ast
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import relic_jax
from relic_jax.bridge import process, protocol
from relic_jax.bridge.member import GIVE_UP
from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.worker import episode_seed
from relic_jax.envs.metaworld import worker as metaworld_worker
from relic_jax.experiments.benchmark import frames
from relic_jax.experiments.faults import corridor
from relic_jax.experiments.faults.corridor import Corridor

ROOT = Path(relic_jax.__file__).parent
WORKER_SIDE = [
    ROOT / "__init__.py",
    *(ROOT / "bridge" / f"{name}.py" for name in ("__init__", "protocol", "worker")),
    *(ROOT / "bridge" / "gym").glob("*.py"),
    *(Path(module.__file__) for module in (corridor, frames, metaworld_worker)),
]
CORRIDOR = "relic_jax.experiments.faults.corridor:Corridor"


def config(workers=2, environments=2, **options) -> PoolConfig:
    own = {name: options.pop(name) for name in list(options) if name in PoolConfig.__dataclass_fields__}
    return PoolConfig(CORRIDOR, options, workers, environments, **{"backoff": 0.0, **own})


def trials(count):
    return [{"goal": 2 + number % 7} for number in range(count)], list(range(10, 10 + count))


class Replica:
    """The trial of one environment in this process, as documented in `worker`."""

    def __init__(self, task, seed, horizon):
        self.env, self.task, self.seed, self.episode = Corridor(horizon=horizon), task, seed, 0
        self.observation = self.begin()

    def begin(self):
        return self.env.reset(self.task, episode_seed(self.seed, self.episode))

    def lose(self):
        self.episode += 1
        self.observation = self.begin()

    def step(self, action):
        action = self.env.expert() if action == protocol.EXPERT else action
        observation, reward, terminated, truncated, metrics = self.env.step(int(action))
        self.final, self.observation = observation, observation
        if terminated or truncated:
            self.lose()
        return reward, terminated, truncated and not terminated, metrics["success"], action


def check(batch, replicas, actions):
    """Compares a batch with the replicas of its environments, which take the same actions; lost steps are followed."""
    for row, number in enumerate(batch.environments):
        replica = replicas[number]
        if batch.valid[row]:
            reward, terminated, truncated, success, acted = replica.step(actions[row])
            assert batch.reward[row] == np.float32(reward)
            assert (batch.terminated[row], batch.truncated[row]) == (terminated, truncated)
            assert (batch.metrics[row, 0], batch.acted[row]) == (success, acted)
        else:
            before = replica.observation
            assert batch.truncated[row] and not batch.terminated[row] and batch.reward[row] == 0
            np.testing.assert_array_equal(batch.final["vector"][row], before["vector"])
            replica.lose()
        for name, value in replica.observation.items():
            np.testing.assert_array_equal(batch.observation[name][row], value)
        if batch.valid[row] and (terminated or truncated):
            np.testing.assert_array_equal(batch.final["vector"][row], replica.final["vector"])


def rows(batch, kept):
    """Return the rows `kept` (bool) of a batch."""
    values = (jax.tree.map(lambda x: x[kept], value) for value in batch)
    return type(batch)(*values)


def started(pool, horizon=20):
    tasks, seeds = trials(pool.config.total)
    batch = pool.reset(tasks, seeds)
    replicas = [Replica(task, seed, horizon) for task, seed in zip(tasks, seeds, strict=True)]
    assert batch.valid.all() and not batch.truncated.any() and batch.environments.tolist() == list(range(len(tasks)))
    for row, replica in enumerate(replicas):
        np.testing.assert_array_equal(batch.observation["vector"][row], replica.observation["vector"])
        np.testing.assert_array_equal(batch.observation["image"][row], replica.observation["image"])
    return replicas


def play(pool, replicas, steps, rng, between=lambda: None):
    """`steps` steps of every group in turn, two in flight, each checked."""
    groups = range(pool.config.groups)
    sent = [None] * pool.config.groups
    for index in range(steps + 1):
        for group in groups:
            if index:
                check(pool.receive(group), replicas, sent[group])
            if index < steps:
                sent[group] = rng.randint(-1, 5, size=len(pool.group(group)))
                pool.send(sent[group], group)
            between()


@pytest.mark.parametrize(("workers", "environments"), [(1, 4), (2, 2), (4, 1)])
def test_equals_stepping_in_process(workers, environments):
    with Pool(config(workers, environments)) as pool:
        for seed in range(2):  # a second trial begins cleanly
            play(pool, started(pool), 60, np.random.RandomState(seed))
        assert not pool.faults
        pool.send(np.zeros(4))
        assert not pool.receive().metrics[:, 1].any(), "a worker imported jax"


def test_results_do_not_depend_on_how_environments_are_spread():
    found = []
    for workers, environments, groups in ((1, 4, 2), (4, 1, 2), (2, 2, 1)):
        with Pool(config(workers, environments, groups=groups)) as pool:
            pool.reset(*trials(4))
            rewards = []
            for _ in range(30):
                pool.send(np.full(4, protocol.EXPERT))
                rewards.append(pool.receive().reward)
            found.append(np.array(rewards))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize("fault", ["", "crash"])
def test_trials_go_on_in_another_pool(tmp_path, fault):
    """Even if a worker of this pool fails while it replays the actions."""
    rng, running = np.random.RandomState(0), [[] for _ in range(4)]
    with Pool(config()) as pool:
        replicas = started(pool)
        for _ in range(9):
            actions, before = rng.randint(5, size=4), [replica.episode for replica in replicas]
            pool.send(actions)
            check(pool.receive(), replicas, actions)
            for row, replica in enumerate(replicas):
                running[row] = [*running[row], int(actions[row])] if replica.episode == before[row] else []
    episodes = [replica.episode for replica in replicas]
    assert any(episodes) and max(map(len, running)) > 3
    with Pool(config(fault=fault, once=str(tmp_path / "happened"))) as pool:
        batch = pool.reset(*trials(4), episodes, running)
        for row, replica in enumerate(replicas):
            np.testing.assert_array_equal(batch.observation["vector"][row], replica.observation["vector"])
        assert batch.valid.all() and pool.restarts == bool(fault)
        play(pool, replicas, 20, rng)


def test_a_slow_worker_delays_only_its_group(tmp_path):
    """Worker 0 takes half a second for one step. The others take their steps in the meantime."""
    slow = {"fault": "slow", "at": 1, "only": 0, "once": str(tmp_path / "once")}
    with Pool(config(3, 1, groups=3, **slow)) as pool:
        replicas, order, pending = started(pool), [], [0, 1, 2]
        for group in pending:
            pool.send([2], group)
        while pending:
            group = pool.ready(pending)
            check(pool.receive(group), replicas, [2])
            order.append(group)
            pending.remove(group)
            if order.count(group) < 8:
                pool.send([2], group)
                pending.append(group)
        with pytest.raises(PoolError, match="ready without send"):
            pool.ready([0])
    assert sorted(order[:16]) == [1] * 8 + [2] * 8 and order[16:] == [0] * 8


def test_arrays_are_the_callers_own():
    with Pool(config()) as pool:
        replicas = started(pool)
        pool.send(np.full(4, 4))
        batch = pool.receive()
        copy = {name: value.copy() for name, value in batch.observation.items()}
        check(batch, replicas, np.full(4, 4))
        play(pool, replicas, 4, np.random.RandomState(0))
        for name, value in copy.items():
            np.testing.assert_array_equal(batch.observation[name], value)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("crash", "crash", "signal 11 (Segmentation fault) while loading scene 'corridor'"),
        ("exit", "crash", "exit status 7; the simulator gave up"),
        ("hang", "hang", "no answer"),
        ("stuck", "hang", "no answer"),
        ("nan", "value", "reward is nan"),
        ("huge", "value", "reward is 1e+300"),
        ("huge_metric", "value", "metric 'success' is 1e+300"),
        ("huge_vector", "value", "observation 'vector' is 1e+300"),
        ("shape", "value", "'vector' is float32[4]; allowed by its spec: float32[3]"),
        ("raise", "exception", "RuntimeError: the simulator raised"),
    ],
)
def test_a_fault_ends_the_episode_and_the_trial_goes_on(tmp_path, fault, kind, words):
    once = str(tmp_path / "happened")
    with Pool(config(fault=fault, only=1, once=once, step_timeout=1.0)) as pool:
        replicas = started(pool)
        play(pool, replicas, 40, np.random.RandomState(0))
        assert [(f.worker, f.kind) for f in pool.faults] == [(1, kind)]
        assert words in pool.faults[0].message
        assert (pool.restarts, pool.dropped) == (1, 0)
        lost = [replica for replica in replicas if replica.episode > 0]
        assert len(lost) >= 2


def test_output_of_native_code_does_no_harm():
    with Pool(config(fault="print")) as pool:
        play(pool, started(pool), 20, np.random.RandomState(0))
        assert not pool.faults


@pytest.mark.parametrize("how", ["not restorable", "reset fails"])
def test_a_trial_that_cannot_go_on_is_dropped_until_the_next(tmp_path, how):
    once, bad = str(tmp_path / "happened"), str(tmp_path / "bad")
    options = {"restorable": False} if how == "not restorable" else {"bad_reset": bad}
    with Pool(config(fault="crash", only=0, once=once, **options)) as pool:
        replicas = started(pool)
        Path(bad).touch()
        mine = np.concatenate([lane.numbers for lane in pool._members[0].lanes])
        ends = np.zeros(4, int)
        for _ in range(8):
            pool.send(np.full(4, 3))
            batch = pool.receive()
            ends += batch.truncated
            kept = np.isin(batch.environments, mine, invert=True)
            assert batch.valid[kept].all()
            check(rows(batch, kept), replicas, [3, 3])
        assert not batch.valid[mine].any() and pool.dropped == 2
        assert ends[mine].tolist() == [1, 1], "the current episode is truncated, once"
        Path(bad).unlink(missing_ok=True)
        play(pool, started(pool), 20, np.random.RandomState(1))


def test_too_many_restarts_stop_the_pool():
    with Pool(config(fault="raise", max_restarts=3)) as pool, pytest.raises(PoolError, match="after 4 worker failures"):
        play(pool, started(pool), 40, np.random.RandomState(0))
    assert pool.pids == [None, None]


def processes_alive(pids):
    def alive(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if alive(pid)]


def wait_until_gone(pids, seconds=20.0):
    deadline = time.monotonic() + seconds
    while processes_alive(pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return processes_alive(pids)


def shared_memory():
    return set(os.listdir("/dev/shm")) if os.path.isdir("/dev/shm") else set()


@pytest.mark.slow
def test_a_hundred_random_kills_lose_no_trial_and_leak_nothing():
    segments, descriptors = shared_memory(), set(os.listdir("/proc/self/fd"))
    rng, seen, kills, stop = random.Random(0), set(), [0], threading.Event()
    with Pool(config(4, 2, max_restarts=1000, milliseconds=0.2)) as pool:

        def killer():
            while kills[0] < 100 and not stop.is_set():
                time.sleep(rng.uniform(0, 0.05))
                member = rng.choice(pool._members)
                pid = member.process.pid
                kept = member.failures < GIVE_UP - 1  # as many consecutive failures drop a trial
                if pid is not None and member.phase == "up" and pid not in seen and kept:
                    seen.add(pid)
                    os.kill(pid, signal.SIGKILL)
                    kills[0] += 1

        replicas, thread = started(pool), threading.Thread(target=killer)
        seen_before = set(pool.pids)
        thread.start()
        try:
            while thread.is_alive():
                play(pool, replicas, 20, np.random.RandomState(kills[0]), lambda: seen_before.update(pool.pids))
        finally:
            stop.set()
            thread.join()
        play(pool, replicas, 40, np.random.RandomState(0))
        assert kills[0] == 100 and pool.dropped == 0
        assert pool.restarts >= 100 and {fault.kind for fault in pool.faults} == {"crash"}
    assert not wait_until_gone((seen | seen_before) - {None})
    assert shared_memory() == segments
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors) + 1


LEARNER = """
    import signal, sys, time
    import numpy as np
    from relic_jax.bridge.pool import Pool, PoolConfig
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with Ctrl-C ignored
    fault = sys.argv[1]
    entry = "relic_jax.experiments.faults.corridor:Corridor"
    with Pool(PoolConfig(entry, {"fault": fault, "at": 1}, 3, 1, groups=1)) as pool:
        pool.reset([{"goal": 3}] * 3, [0] * 3)
        if fault:
            pool.send(np.zeros(3))
        time.sleep(0.3)
        print(*pool.pids, flush=True)
        pool.receive() if fault else time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["", "hang", "stuck"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_learner_is_killed(fault, number):
    segments = shared_memory()
    command = [sys.executable, "-c", textwrap.dedent(LEARNER), fault]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as learner:
        pids = [int(pid) for pid in learner.stdout.readline().split()]
        assert len(processes_alive(pids)) == 3
        learner.send_signal(number)
        learner.wait(20)
    assert not wait_until_gone(pids)
    assert shared_memory() == segments


def other_pythons():
    found = [Path(p) for p in os.environ.get("RELIC_WORKER_PYTHONS", "").split(os.pathsep) if p]
    names = [f"python3.{minor}" for minor in range(8, 15)]
    found += [Path(path) for path in map(shutil.which, names) if path]
    for path in found:
        probe = [path, "-c", "import sys, numpy; print(*sys.version_info[:2])"]
        result = subprocess.run(probe, capture_output=True, text=True, cwd="/", check=False)
        if result.returncode == 0 and tuple(map(int, result.stdout.split())) != sys.version_info[:2]:
            yield path


def test_other_interpreters():
    pythons = list(other_pythons())
    if not pythons:
        pytest.skip("no other Python with numpy (RELIC_WORKER_PYTHONS may list some)")
    for python in pythons:
        with Pool(config(python=str(python))) as pool:
            play(pool, started(pool), 30, np.random.RandomState(0))
            assert pool.versions[0]["python"] != sys.version.split()[0]


@pytest.mark.parametrize("path", WORKER_SIDE, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_worker_side_is_python_3_8(path):
    source = path.read_text()
    ast.parse(source, feature_version=(3, 8))
    assert "from __future__ import annotations" in source


def test_the_worker_side_imports_neither_jax_nor_a_new_library():
    code = "import sys, relic_jax.bridge.worker, relic_jax.experiments.faults.corridor; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "flax", "optax", "chex", "relic_jax.config"} & set(loaded)


def test_a_worker_of_another_protocol_is_one_line(tmp_path, monkeypatch):
    shutil.copytree(ROOT, tmp_path / "relic_jax", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "relic_jax" / "bridge" / "protocol.py"
    file.write_text(file.read_text().replace(f"PROTOCOL = {protocol.PROTOCOL}", "PROTOCOL = 0"))
    monkeypatch.setattr(process, "LAUNCH", tmp_path / "relic_jax" / "bridge" / "launch")
    with pytest.raises(PoolError, match=f"the learner speaks protocol {protocol.PROTOCOL}, the worker 0") as error:
        Pool(config())
    assert "\n" not in str(error.value)


def test_a_worker_with_another_spec_is_one_line():
    with Pool(config(horizon=20)) as pool:
        spec = pool.spec
    with pytest.raises(PoolError, match="horizon: the learner expects 20, the worker has 21"):
        Pool(config(horizon=21), spec)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"python": "/no/such/python"}, "python is '/no/such/python'; allowed: a Python interpreter"),
        ({"python": "/bin/true"}, "exit status 0"),
        ({"workers": 3, "environments": 1}, "groups is 2; allowed: a divisor of environments"),
        ({"unknown": 1}, "unexpected keyword argument 'unknown'"),
    ],
)
def test_what_cannot_start_is_one_line(options, words):
    with pytest.raises(PoolError) as error:
        Pool(config(**options))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_misuse_is_refused():
    with Pool(config()) as pool:
        started(pool)
        with pytest.raises(PoolError, match="receive without send"):
            pool.receive(0)
        with pytest.raises(PoolError, match=r"shape \[3\]; allowed: \[2\]"):
            pool.send(np.zeros(3), 0)
        pool.send(np.zeros(2), 0)
        with pytest.raises(PoolError, match="send twice"):
            pool.send(np.zeros(2), 0)


def test_the_environment_of_a_worker_is_scrubbed(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", "/learner/lib")
    monkeypatch.setenv("VIRTUAL_ENV", "/learner")
    monkeypatch.setenv("PYTHONPATH", "/learner/packages")
    found = process.worker_environment(3, ["/mine"], {"EXTRA": "1"})
    assert found["PYTHONPATH"] == f"{process.LAUNCH}{os.pathsep}/mine"
    assert not {"LD_LIBRARY_PATH", "VIRTUAL_ENV"} & set(found)
    assert (found["RELIC_WORKER"], found["EXTRA"]) == ("3", "1")
