"""Workers on the machines of a Ray cluster: two nodes on this one. The same numbers as without Ray, and its faults."""

import os
import random
import sys
import threading
import time

import numpy as np
import pytest

from relic_jax.bridge import protocol
from relic_jax.bridge.pool import Pool, PoolConfig, PoolError
from relic_jax.bridge.worker import episode_seed
from relic_jax.experiments.faults.corridor import Corridor

CORRIDOR = "relic_jax.experiments.faults.corridor:Corridor"
TASKS, SEEDS = [{"goal": 2 + number} for number in range(4)], [10, 11, 12, 13]


@pytest.fixture(scope="module")
def address():
    """Of a cluster of two nodes with one processor each."""
    pytest.importorskip("ray")
    import ray
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    cluster.wait_for_nodes()
    yield cluster.address
    ray.shutdown()
    cluster.shutdown()


def config(workers=2, environments=2, **options):
    own = {name: options.pop(name) for name in list(options) if name in PoolConfig.__dataclass_fields__}
    return PoolConfig(CORRIDOR, options, workers, environments, **{"backoff": 0.0, **own})


def played(pool, steps, seed=0):
    """Everything that the pool answers to `steps` random steps of every group, two in flight; lost ones left out."""
    rng, found, sent = np.random.RandomState(seed), [], {}
    first = pool.reset(TASKS, SEEDS)
    found.append(first.observation["image"].copy())
    for index in range(steps + 1):
        for group in range(pool.config.groups):
            if index:
                batch = pool.receive(group)
                assert batch.valid.all() and (batch.acted == sent[group])[sent[group] >= 0].all()
                found += [batch.reward, batch.terminated, batch.truncated, batch.metrics, *batch.observation.values()]
                found += list((batch.final or {}).values())
            if index < steps:
                sent[group] = rng.randint(-1, 5, size=len(pool.group(group)))
                pool.send(sent[group], group)
    return found


@pytest.mark.parametrize(("workers", "environments"), [(2, 2), (1, 4)])
def test_equals_workers_of_this_machine(address, workers, environments):
    with Pool(config(workers, environments)) as pool:
        expected = played(pool, 30)
    with Pool(config(workers, environments, ray=address)) as pool:
        found = played(pool, 30)
        assert len({versions["node"] for versions in pool.versions}) == workers, "spread over the machines"
        assert all(versions["python"] == sys.version.split()[0] for versions in pool.versions) and not pool.faults
    assert len(found) == len(expected)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("exit", "crash", "exit status 7; the simulator gave up"),
        ("nan", "value", "reward is nan"),
        ("hang", "hang", ""),
    ],
)
def test_a_fault_ends_the_episode_and_the_trial_goes_on(address, tmp_path, fault, kind, words):
    options = {"fault": fault, "only": 1, "once": str(tmp_path / "happened"), "step_timeout": 3.0}
    with Pool(config(ray=address, groups=1, **options)) as pool:
        pool.reset(TASKS, SEEDS)
        lost = np.zeros(4, int)
        for _ in range(20):
            pool.send(np.full(4, 2))
            batch = pool.receive()
            lost += ~batch.valid
            assert (batch.truncated == ~batch.valid)[:4].all() or batch.valid.all()
        assert [(found.worker, found.kind) for found in pool.faults] == [(1, kind)] and words in pool.faults[0].message
        assert lost.tolist() == [0, 0, 1, 1] and (pool.restarts, pool.dropped) == (1, 0)
        replica = Corridor(horizon=20)
        observation = replica.reset(TASKS[3], episode_seed(SEEDS[3], 1))
        for _ in range(20 - 3):
            observation = replica.step(2)[0]
        np.testing.assert_array_equal(batch.observation["vector"][3], observation["vector"])


def test_actors_that_are_killed_are_started_again(address):
    import ray

    with Pool(config(ray=address, max_restarts=50)) as pool:
        rng, deadline, kills, steps = random.Random(0), time.monotonic() + 60, [], 0
        pool.reset(TASKS, SEEDS)

        def kill():
            relay = rng.choice(pool._members).process._relay
            if relay is not None:
                kills.append(relay)
                ray.kill(relay)

        while len(kills) < 3 and time.monotonic() < deadline:
            timer = threading.Timer(rng.uniform(0, 0.05), kill)
            timer.start()
            for _ in range(5):
                pool.send(np.full(4, protocol.EXPERT))
                assert pool.receive().reward.shape == (4,)
                steps += 1
            timer.join()
        pool.send(np.full(4, protocol.EXPERT))
        pool.receive()
        assert len(kills) == 3 and pool.restarts >= 2 and pool.dropped == 0
        assert {fault.kind for fault in pool.faults} == {"crash"}


def alive(text):
    """Processes of this user whose command line has `text` in it."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline") as file:
                found += [pid] if text in file.read() else []
        except OSError:
            pass
    return found


def test_nothing_is_left(address):
    before = set(alive("relic_jax_worker"))
    with Pool(config(ray=address)) as pool:
        pool.reset(TASKS, SEEDS)
        assert len(set(alive("relic_jax_worker")) - before) >= 2
    deadline = time.monotonic() + 20
    while (left := set(alive("relic_jax_worker")) - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left


def test_a_missing_interpreter_is_one_line(address):
    with pytest.raises(PoolError, match="python is '/no/python'; allowed: a Python interpreter") as error:
        Pool(config(ray=address, python="/no/python"))
    assert "\n" not in str(error.value)


def test_without_ray_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PoolError, match=r"ray is 'auto'; allowed: None without the package ray .*pip install") as error:
        Pool(config(ray="auto"))
    assert "\n" not in str(error.value)
