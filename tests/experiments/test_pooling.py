"""Runs that differ in the seed only are pooled into one curve. Groups of them share a figure."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import pytest

from relic_jax import checkpoint
from relic_jax.config import ConfigError, TransformerConfig, WorkerConfig, changed, leaves
from relic_jax.envs.registry import make
from relic_jax.evaluation import in_jit
from relic_jax.experiments import folders, pooling
from relic_jax.export import export_policy
from relic_jax.loading import load_policy
from relic_jax.rl.train import prepare, restore, save


@pytest.fixture(scope="module")
def begun(tiny, tmp_path_factory):
    """Return `begun(name, **config)`: a run folder with one checkpoint, of step 0."""
    runs = tmp_path_factory.mktemp("runs")

    def make_run(name, **changes):
        folder = runs / name
        if not folder.exists():
            config = dataclasses.replace(tiny(env="darkroom-ad-9"), **changes)
            setup = prepare(config, make(config.env))
            folders.create_folder(folder, setup.config)
            state, progress = restore(setup, folder / "checkpoints")
            save(setup, folder / "checkpoints", state, progress)
        return folder

    return make_run


@pytest.fixture
def refused(cli, monkeypatch):
    def compiled(*_, **__):
        raise AssertionError("something was compiled")

    def check(arguments, *said):
        with monkeypatch.context() as patch:
            patch.setattr(in_jit, "chunk_function", compiled)
            code, out, err = cli("evaluate", *arguments)
        assert (code, out) == (2, "") and err.count("\n") == 1, (code, out, err)
        for text in said:
            assert str(text) in err, err
        return err

    return check


def with_config(loaded, **changes):
    return dataclasses.replace(
        loaded, config=dataclasses.replace(loaded.config, **changes), path=loaded.path.with_name("other")
    )


def another(loaded, **changes):
    """Return the policy with other parameters, like that of a second run."""
    params = jax.tree.map(lambda x: x + 1, loaded.params)
    return dataclasses.replace(with_config(loaded, **changes), params=params)


def other_value(value):
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return "other" if isinstance(value, str) or value is None else value


def test_every_field_but_the_seed_and_what_it_ran_on_must_be_equal(begun):
    loaded = load_policy(begun("seed0"))
    pooling.check_pool([loaded, another(loaded, seed=1)], [False, False])

    count = 0
    for name, value in leaves(loaded.config):
        if name == "seed":
            continue
        config = dataclasses.replace(changed(loaded.config, name, other_value(value)), seed=1)
        other = dataclasses.replace(another(loaded), config=config)
        if name in pooling.MAY_DIFFER:
            pooling.check_pool([loaded, other], [False, False])
        elif config != dataclasses.replace(loaded.config, seed=1):
            with pytest.raises(ConfigError, match=rf"has {name} .*; allowed to pool with: ") as error:
                pooling.check_pool([loaded, other], [False, False])
            assert str(other.path) in str(error.value) and "\n" not in str(error.value)
            count += 1
    assert count > 60


def test_starts_may_differ_in_their_numbers_alone(begun):
    loaded = load_policy(begun("seed0"))
    loaded = dataclasses.replace(loaded, config=dataclasses.replace(loaded.config, start_from="runs/a-seed0"))
    pooling.check_pool([loaded, another(loaded, seed=1, start_from="runs/a-seed1")], [False, False])
    for start in ("runs/b-seed1", None):
        with pytest.raises(ConfigError, match="has start_from"):
            pooling.check_pool([loaded, another(loaded, seed=1, start_from=start)], [False, False])


def test_runs_that_were_trained_for_different_times_are_not_pooled(begun):
    loaded = load_policy(begun("seed0"))
    longer = dataclasses.replace(another(loaded, seed=1), training={**loaded.training, "env_steps": 64})
    with pytest.raises(ConfigError, match="has env_steps 64; allowed to pool with: 0"):
        pooling.check_pool([loaded, longer], [False, False])


def test_one_seed_counts_once_unless_it_says_nothing(begun):
    loaded = load_policy(begun("seed0"))
    with pytest.raises(ConfigError, match="both have seed 0; allowed: one run of each seed"):
        pooling.check_pool([loaded, another(loaded)], [False, False])
    pooling.check_pool([loaded, another(loaded)], [True, True])  # imported: the seed in the config has no meaning
    with pytest.raises(ConfigError, match="are the same policy"):
        pooling.check_pool([loaded, with_config(loaded, seed=1)], [True, True])


@pytest.mark.slow
def test_the_same_run_twice_is_refused_however_it_is_called(refused, begun, tmp_path, monkeypatch):
    run = begun("seed0")
    copy = shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "link").symlink_to(run)
    export_policy(load_policy(run), tmp_path / "exported")
    monkeypatch.chdir(run.parent)
    for again in (run, Path("seed0"), checkpoint.find(run), copy, tmp_path / "link", tmp_path / "exported"):
        refused([run, again], "are the same policy; allowed: each run once")
        refused([run, begun("seed1", seed=1), again], "are the same policy")
    refused(["--group", f"a={run},{copy}"], "are the same policy")


@pytest.mark.slow
def test_other_configs_are_named(refused, begun):
    run = begun("seed0")
    wide = TransformerConfig(layers=1, heads=2, width=16, mlp_width=8, max_positions=128, attention="reference")
    policy = dataclasses.replace(load_policy(run).config.policy, transformer=wide)
    refused([run, begun("wide", policy=policy, seed=1)], "has policy.transformer.width 16; allowed to pool with: 8")
    refused([run, begun("longer", total_steps=1024, seed=1)], "has total_steps 1024; allowed to pool with: 512")
    random = begun("random", env="darkroom-ad-9-random")
    refused([run, random], "has env 'darkroom-ad-9-random'; allowed to pool with: 'darkroom-ad-9'", "--group")
    refused([run, random, "--env", "darkroom-ad-9"], "has env 'darkroom-ad-9-random'")  # trained in another one


# --- groups ---


@pytest.mark.slow
def test_groups_are_evaluated_each_and_drawn_together(cli, begun, tmp_path, monkeypatch):
    runs = begun("seed0").parent
    for name, env in (("kv", "darkroom-ad-9"), ("none", "darkroom-ad-9-random")):
        for seed in (0, 1):
            begun(f"{name}-{seed}", env=env, seed=seed)
    (runs / "kv-notes.txt").write_text("no run")
    monkeypatch.chdir(tmp_path)
    options = ["--env", "darkroom-ad-9", "--episodes", 2, "--limit", 3]
    groups = ["--group", f"kv={runs}/kv-*", "--group", f"none={runs}/none-0,{runs}/none-1"]
    code, out, err = cli("evaluate", *groups, *options, "--out", "both.png")
    assert (code, err) == (0, ""), err
    names = [
        "both-kv.csv",
        "both-kv.json",
        "both-kv.png",
        "both-none.csv",
        "both-none.json",
        "both-none.png",
        "both.png",
    ]
    assert sorted(path.name for path in Path().iterdir()) == names
    for group in ("kv", "none"):
        summary = json.loads(Path(f"both-{group}.json").read_text())
        assert summary["seeds"] == 2 and summary["training_seeds"] == [0, 1] and summary["tasks"] == 3
        assert summary["env_options"] == {}
        assert all(f"/{group}-" in path for path in summary["checkpoints"]) and f"{group}: 3 held-out" in out
    code, out, err = cli("evaluate", "--group", f"kv={runs}/kv-*", *options)
    assert code == 0 and Path("evaluate-darkroom-ad-9-test-2-episodes-first-3-tasks-kv.json").is_file(), err


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        (["kv"], "group is 'kv'; allowed: NAME=PATTERN"), (["=x"], "allowed: NAME=PATTERN"),
        (["a/b=x"], "group is 'a/b=x'"), (["../a=x"], "group is '../a=x'"), (["a="], "allowed: a pattern that"),
        (["a=nowhere-*"], "group is 'a=nowhere-*'; allowed: a pattern that some run"),
        (["a=RUN", "a=RUN"], "each NAME once"), (["a=RUN", "b=RANDOM"], "group 'b' is of env darkroom-ad-9-random"),
        (["a=RUN,RANDOM"], "has env"),
    ],
)  # fmt: skip
def test_bad_groups_are_refused(refused, begun, groups, said):
    places = {"RUN": str(begun("seed0")), "RANDOM": str(begun("random", env="darkroom-ad-9-random"))}
    arguments = []
    for group in groups:
        name, equals, patterns = group.partition("=")
        arguments += ["--group", name + equals + ",".join(places.get(p, p) for p in patterns.split(","))]
    refused(arguments, said)


def test_groups_take_the_place_of_paths(refused, begun):
    run = begun("seed0")
    refused([run, "--group", f"a={run}"], "allowed: nothing where paths or --pretrained are given")
    refused(["--pretrained", "darkroom-dpt", "--group", f"a={run}"], "allowed: nothing where paths")


# --- environments ---


@pytest.mark.slow
def test_observations_outside_of_the_policys_range_are_refused(refused, cli, begun):
    run = begun("seed0")  # a grid of 9×9
    for env, high in (("darkroom-hard-17", 16), ("darkroom-dpt", 9), ("darkroom-large-40x20", "39, 19")):
        pair = high if isinstance(high, str) else f"{high}, {high}"
        said = f"env is '{env}', whose observations range over [0, 0] … [{pair}]; allowed: within the policy's, [0, 0]"
        refused([run, "--env", env], said, "[8, 8]")
        code, _, err = cli("play", run, "--env", env)
        assert code == 2 and said in err
    wide = begun("wide-grid", env="darkroom-hard-17")
    code, _, err = cli("evaluate", wide, "--env", "darkroom-ad-9", "--episodes", 1, "--limit", 1)
    assert code == 0, err  # a smaller grid lies within


def test_an_environment_that_a_config_names_but_the_policy_does_not_fit_is_refused(refused, begun, tmp_path, resealed):
    for env, said in (
        ("darkroom-hard-17", "whose observations range over"),
        ("miniworld-open", "whose spaces are"),
        ("pointmass-goal", "whose spaces are"),
        ("darkrom", "did you mean"),
    ):
        folder = tmp_path / env
        export_policy(load_policy(begun("seed0")), folder)
        about = json.loads((folder / "config.json").read_text())
        about["training"]["config"]["env"]["name"] = env
        (folder / "config.json").write_text(json.dumps(about))
        resealed(folder)
        refused([folder], f"env is '{env}'", said)


def test_only_what_differs_between_spaces_is_printed(refused):
    for pose, said in (
        (
            "dock",
            "whose spaces are observation['square'] float32[46]; allowed: the policy's, observation['square'] float32",
        ),
        (
            "episode",
            "whose spaces are without observation['square']; allowed: the policy's, observation['square'] float",
        ),
    ):
        refused(["--pretrained", "house-symbols-small", "--env.pose", pose], f"env is 'house-objnav-small', {said}")


def test_an_evaluation_that_no_memory_can_hold_is_refused(refused, begun):
    said = "eval.episodes is 10000000; allowed: a size that fits into"
    refused([begun("seed0"), "--episodes", 10_000_000, "--repeats", 1000], said)


def test_options_of_workers_are_refused_where_there_are_none(refused, begun):
    refused([begun("seed0"), "--host.workers", 3], "host.workers is 3", "has no worker processes")
    assert WorkerConfig().workers != 3
