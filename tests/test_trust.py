"""Programs that a policy's config names are started only for its owner, or if the user allows it."""

import dataclasses
import hashlib
import hmac
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from relic_jax import checkpoint, trust
from relic_jax.bridge.pool import Pool
from relic_jax.config import ConfigError, EnvConfig, TrainConfig, WorkerConfig, from_json
from relic_jax.envs import registry
from relic_jax.experiments import run
from relic_jax.export import export_policy
from relic_jax.loading import load_policy
from relic_jax.rl import train as training

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """Return a home folder with a key in `home/relic-jax`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def config_of(env="darkroom-ad-9", options=(), **host):
    return TrainConfig(env=EnvConfig(env, options=options), host=WorkerConfig(**host))


# --- the key ---


def test_the_key_is_made_once_and_only_its_owner_can_read_it(home):
    first = trust.own_key()
    assert len(first) == trust.KEY_BYTES and trust.own_key() == first == trust.read_key()
    file = home / "relic-jax" / "owner.key"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("damage", ["readable", "writable", "link", "short", "long", "folder", "pipe"])
def test_an_unsafe_or_damaged_key_is_ignored(home, damage):
    signature = trust.sign(config_of())
    file = home / "relic-jax" / "owner.key"
    key = file.read_bytes()
    file.unlink()
    if damage in ("readable", "writable"):
        file.write_bytes(key)
        file.chmod(0o644 if damage == "readable" else 0o620)
    elif damage == "link":
        (home / "other").write_bytes(key)
        (home / "other").chmod(0o600)
        file.symlink_to(home / "other")
    elif damage in ("short", "long"):
        file.write_bytes(key[:-1] if damage == "short" else key + b"x")
        file.chmod(0o600)
    else:
        file.mkdir() if damage == "folder" else os.mkfifo(file, 0o600)
    assert trust.read_key() is None and trust.sign(config_of()) is None
    assert not trust.is_own(config_of(), signature)


def test_without_a_key_nothing_belongs_to_the_user(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    assert trust.sign(config_of()) is None and not trust.is_own(config_of(), None)
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")  # such paths are ignored
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError))
    assert trust.key_file() is None and trust.sign(config_of()) is None
    assert not (tmp_path / "relative").exists()


def test_several_processes_agree_on_one_key(tmp_path):
    code = "from relic_jax import trust; print(trust.own_key().hex())"
    processes = [subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    assert len({process.communicate()[0] for process in processes}) == 1


# --- signatures ---


def test_a_signature_is_of_the_environment_and_the_workers():
    config = config_of("gym:evil:X-v0", python="/bin/evil")
    signature = trust.sign(config)
    assert trust.is_own(config, signature) and trust.is_own(dataclasses.replace(config, seed=7), signature)
    for other in (
        dataclasses.replace(config, env="gym:evil:Y-v0"),
        config_of("gym:evil:X-v0", python="/bin/worse"),
        config_of("gym:evil:X-v0", python="/bin/evil", ray="auto"),
    ):
        assert not trust.is_own(other, signature)
    for forged in (None, "", 3, [], "hmac-sha256:" + 64 * "0", signature + " ", "é"):
        assert not trust.is_own(config, forged)


def test_another_users_signature_is_not_valid(monkeypatch, tmp_path):
    signature = trust.sign(config_of())
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody"))
    assert not trust.is_own(config_of(), signature)
    trust.own_key()
    assert not trust.is_own(config_of(), signature)


# --- configs that need trust ---


@pytest.mark.parametrize("env", [*registry.names(), "ant-dir:mjx", "gym:CartPole-v1", "gymnax:CartPole-v1",
    "xland:XLand-MiniGrid-R1-9x9:high", "metaworld:ml1:reach-v3", "playground:CheetahRun", "navix:Navix-Empty-5x5-v0",
    "craftax:Craftax-Symbolic-v1", "gym:ALE/Pong-v5"])  # fmt: skip
def test_registered_environments_need_none(env):
    assert trust.needs_trust(config_of(env)) == {}


@pytest.mark.parametrize("env", ["python:evil:Env", "gym:evil:X-v0", "gym:evil:ns/X-v0", "habitat-lab:evil.yaml",
    "xland:XLand-MiniGrid-R1-9x9:evil.npz", "xland:XLand-MiniGrid-R1-9x9:/tmp/evil", "new:thing", ":", "python:",
    "gymnax:../x"])  # fmt: skip
def test_others_do(env):
    assert trust.needs_trust(config_of(env)) == {"env": env}


def test_every_field_of_the_workers_that_is_no_number_or_choice_needs_it():
    """New fields need trust unless they are added to `trust.HARMLESS`."""
    for field in dataclasses.fields(WorkerConfig):
        text = field.type in ("str", "str | None") or field.type.startswith("tuple")
        assert text == (field.name not in trust.HARMLESS), field.name
        if text:
            value = ("evil:Wrapper",) if field.type.startswith("tuple") else "evil"
            assert trust.needs_trust(config_of(**{field.name: value})) == {f"host.{field.name}": value}


def test_every_option_of_an_environment_that_is_no_number_or_choice_needs_it():
    for entry in registry.TABLE.values():
        options = registry._attribute(entry.options) if entry.options else registry.NoOptions
        for field in dataclasses.fields(options):
            text = field.type in ("str", "str | None")
            assert text == (not trust._is_harmless(field.name, field.default)) or field.default is None, field.name
            if text:
                options = {field.name: "evil"}
                assert trust.needs_trust(config_of("extobjnav", options)) == {f"env.{field.name}": "evil"}


def test_signatures_of_the_first_layout_stay_valid():
    """In the first layout, environment options were fields of `host`, and only fields that were set were signed."""
    key = trust.own_key()
    message = json.dumps({"env": "extobjnav", "host": {"dataset": "d", "horizon": 7, "workers": 3}}, sort_keys=True)
    signature = "hmac-sha256:" + hmac.new(key, message.encode(), hashlib.sha256).hexdigest()
    old = {"workers": 3, "horizon": 7, "dataset": "d", "backend": "soft", "image_size": 64}
    assert trust.is_own(from_json(json.dumps({"env": "extobjnav", "host": old})), signature)
    assert not trust.is_own(from_json(json.dumps({"env": "extobjnav", "host": {**old, "dataset": "e"}})), signature)


# --- commands ---


@pytest.fixture
def started(monkeypatch):
    """Return the list of attempts to import or start something, which all fail."""
    tried = []

    class NoPool(Pool):
        def __init__(self, config, *_, **__):
            tried.append(("pool", config.python))
            raise AssertionError("a worker was started")

    monkeypatch.setattr("relic_jax.envs.gym.Pool", NoPool)
    monkeypatch.setattr("relic_jax.envs.habitat.lab.env.call", lambda *a: tried.append(("call", *a)))
    monkeypatch.setattr(
        "relic_jax.envs.custom.make", lambda *a: tried.append(("import", *a)) or pytest.fail("a module was imported")
    )
    return tried


EVIL = {
    "gym": {"env": "gym:evil_module:Env-v0"},
    "own": {"env": "python:evil_module:Env"},
    "lab": {"env": "habitat-lab:evil.yaml"},
    "interpreter": {"env": "gym:CartPole-v1", "host.python": "evil/python"},
    "ray": {"env": "gym:CartPole-v1", "host.ray": "evil.example:6379"},
    "dataset": {"env": "extobjnav", "env.dataset": "/etc/passwd"},
    "scenes": {"env": "extobjnav", "env.scene_dataset": "evil.json"},
    "objects": {"env": "extobjnav", "env.objects": "/evil"},
}


def edited(data, evil):
    for name, value in evil.items():
        section, _, field = name.partition(".")
        if section == "env" and field:
            data["env"]["options"][field] = value
        else:
            data[section][field or "name"] = value


@pytest.fixture
def export(begun_run, tmp_path_factory, resealed):
    """Return `export(evil)`: a downloaded policy with an edited config and matching checksums."""
    made = tmp_path_factory.mktemp("downloaded")

    def make(evil):
        folder = made / "policy"
        export_policy(load_policy(begun_run), folder)
        about = json.loads((folder / "config.json").read_text())
        edited(about["training"]["config"], evil)
        (folder / "config.json").write_text(json.dumps(about))
        resealed(folder)
        return folder

    return make


@pytest.fixture
def foreign_run(begun_run, tmp_path, resealed):
    """Return `foreign_run(evil)`: a copied run folder in which all configs are edited."""

    def make(evil, name="copied"):
        folder = shutil.copytree(begun_run, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        edited(config, evil)
        (folder / "config.json").write_text(json.dumps(config))
        saved = checkpoint.find(folder)
        meta = json.loads((saved / "meta.json").read_text()) | {"config": config}
        (saved / "meta.json").write_text(json.dumps(meta))
        resealed(saved)
        return folder

    return make


def assert_refused(cli, arguments, evil):
    code, out, err = cli(*arguments)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    bad = {name: value for name, value in evil.items() if value not in ("gym:CartPole-v1", "extobjnav")}
    for name, value in bad.items():
        assert f"{name} is {value!r}" in err and "--trust" in err and f"--{name.replace('_', '-')}" in err, err


@pytest.mark.parametrize("kind", EVIL)
def test_a_downloaded_policy_starts_nothing(cli, export, started, kind):
    folder = export(EVIL[kind])
    for arguments in (["evaluate", folder], ["play", folder], ["evaluate", "--group", f"a={folder}"]):
        assert_refused(cli, arguments, EVIL[kind])
    agent = load_policy(folder).agent()  # loading only parameters needs no trust
    assert 0 <= agent.step([0.0, 0.0]) < 5
    code, _, err = cli("export", folder, "--to", "again")
    assert code == 0, err
    assert json.loads(Path("again/config.json").read_text())["owner"] is None
    assert_refused(cli, ["evaluate", "again"], EVIL[kind])
    assert started == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVIL)
def test_a_copied_run_with_an_edited_config_starts_nothing(cli, foreign_run, started, kind):
    folder = foreign_run(EVIL[kind])
    for arguments in (["train", "--resume", folder], ["evaluate", folder], ["play", checkpoint.find(folder)]):
        assert_refused(cli, arguments, EVIL[kind])
    assert not load_policy(folder).own and started == []


def not_made(env, workers=None):
    """Replace `registry.make`."""
    raise ConfigError(f"made {env.name} {workers}")


@pytest.mark.slow
def test_trust_or_the_same_option_lets_it_start(cli, export, foreign_run, monkeypatch):
    """The error of the command shows whether the environment was started."""
    monkeypatch.setattr(registry, "make", not_made)
    folder, copied = export(EVIL["interpreter"]), foreign_run(EVIL["gym"])
    for arguments in (
        ["evaluate", folder, "--trust"],
        ["play", folder, "--trust"],
        ["evaluate", folder, "--host.python", "mine"],
        ["evaluate", folder, "--habitat-python", "mine"],
        ["train", "--resume", copied, "--trust"],
        ["train", "--resume", copied, "--env", EVIL["gym"]["env"]],
        ["evaluate", copied, "--env", "gym:evil_module:Env-v0"],
        ["play", copied, "--env=darkroom-dpt"],
    ):
        code, _, err = cli(*arguments)
        assert code == 2 and "made " in err and "--trust" not in err, err
        assert ("python='mine'" in err) == ("mine" in " ".join(map(str, arguments)))
    code, _, err = cli("evaluate", folder, "--env", "gym:Pendulum-v1")  # the interpreter is still that of the file
    assert code == 2 and "host.python is 'evil/python'" in err


def test_a_preset_says_all_of_a_resumed_config(cli, foreign_run, monkeypatch):
    from relic_jax.experiments import presets

    monkeypatch.setattr(registry, "make", not_made)
    folder = foreign_run(EVIL["gym"])
    config = checkpoint.load_meta(checkpoint.find(folder))[0]
    monkeypatch.setitem(presets.PRESETS, "mine", dataclasses.replace(presets.get("darkroom-dpt"), config=config))
    assert "made gym:" in cli("train", "mine", "--resume", folder)[2]
    assert "--trust" in cli("train", "--resume", folder)[2]


def own_run(tiny, folder, **host):
    """Return a run of this user in an environment with workers, without starting any."""
    from relic_jax.envs.registry import make
    from relic_jax.experiments import folders
    from relic_jax.rl.train import prepare, restore, save

    setup = prepare(tiny(env="darkroom-ad-9"), make("darkroom-ad-9"))
    config = dataclasses.replace(setup.config, env="gym:mine:Env-v0", host=WorkerConfig(**host))
    folders.create_folder(folder, config)
    setup = dataclasses.replace(setup, config=config)
    save(setup, folder / "checkpoints", *restore(setup, folder / "checkpoints"))
    return folder


@pytest.mark.slow
def test_the_users_runs_need_no_trust_moved_or_copied_or_exported(cli, tiny, monkeypatch, tmp_path):
    folder = own_run(tiny, tmp_path / "run", python="/my/python")
    assert load_policy(folder).own
    export_policy(load_policy(folder), tmp_path / "exported")
    monkeypatch.setattr(registry, "make", not_made)
    shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    folder.rename(tmp_path / "moved")
    for arguments in (
        ["evaluate", tmp_path / "moved"],
        ["train", "--resume", tmp_path / "moved"],
        ["play", tmp_path / "elsewhere" / "copy"],
        ["evaluate", tmp_path / "exported"],
    ):
        assert "made gym:mine:Env-v0" in cli(*arguments)[2]
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "somebody-else"))
    for arguments in (["evaluate", tmp_path / "moved"], ["train", "--resume", tmp_path / "moved"]):
        assert "--trust" in cli(*arguments)[2]


def test_a_run_that_has_no_checkpoint_yet_is_known_by_its_folder(cli, tiny, monkeypatch, tmp_path):
    folder = own_run(tiny, tmp_path / "run")
    shutil.rmtree(folder / "checkpoints")
    monkeypatch.setattr(registry, "make", not_made)
    assert "made gym:mine:Env-v0" in cli("train", "--resume", folder)[2]
    (folder / "origin.json").write_text("{}")
    assert "--trust" in cli("train", "--resume", folder)[2]


def test_loading_in_python_starts_nothing_even_without_saved_spaces(foreign_run, resealed, started, tmp_path):
    """Checkpoints without saved spaces read them from their environment."""
    for kind, evil in (*EVIL.items(), ("plain", {"env": "gym:CartPole-v1"})):
        saved = checkpoint.find(foreign_run(evil, kind))
        meta = json.loads((saved / "meta.json").read_text())
        del meta["spaces"]
        (saved / "meta.json").write_text(json.dumps(meta))
        resealed(saved)
        with pytest.raises(ConfigError, match="trust=True") as error:
            load_policy(saved)
        assert repr(evil["env"]) in str(error.value) and "\n" not in str(error.value)
    assert started == []
    with pytest.raises(AssertionError, match="a worker was started"):
        load_policy(saved, trust=True, spaces_of=run.spaces_of_config)
    with pytest.raises(ConfigError, match=r"spaces is missing .*; allowed: spaces, or load_policy\(path, spaces_of="):
        load_policy(saved, trust=True)


def test_how_many_workers_a_file_asks_for_is_not_followed(export, monkeypatch):
    made = []
    folder = export({"env": "gym:CartPole-v1", "host.workers": 9000})
    policy = load_policy(folder)
    for given, host in ((frozenset(), WorkerConfig()), (frozenset({"host.workers"}), WorkerConfig(workers=5))):
        monkeypatch.setattr(run, "env_of", lambda config: made.append(config.host.workers) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.in_environment([policy], run.Overrides(workers=host, given=given))
    assert made[0] <= max(os.cpu_count(), WorkerConfig().workers) and made[1] == 5


def test_a_finished_run_evaluates_itself_where_no_key_can_be_kept(monkeypatch, tmp_path, begun_run):
    """Its config belonged to the user when the run was started."""
    from relic_jax.experiments import training as command

    seen = []
    monkeypatch.setattr(run, "evaluate_policies", lambda policies, *_: seen.extend(policies) or 1 / 0)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    with pytest.raises(ZeroDivisionError):
        command.finish(begun_run, training.Result(None, True, 1.0))
    assert seen[0].own
