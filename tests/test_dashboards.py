"""TensorBoard and W&B: contents after resuming, and failures that do not stop training."""

import json
import sys
import threading
import time

import pytest

from relic_jax import dashboards
from relic_jax.config import ConfigError
from relic_jax.dashboards import OptionalTracker, TensorBoard, WandB, WandBOptions, load_extra, wandb_run

CLOCK = {"seconds": 2.0, "steps_per_second": 1234.5, "seconds_left": 75.0}


def record(env_steps, **values):
    return {"env_steps": env_steps, "loss": 0.1 + env_steps, **values}


# --- TensorBoard ---


def events(folder):
    """Return the events of a run as (step, {tag: value}), in the order of file names and of records."""
    from tensorboardX.proto import event_pb2

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data = file.read_bytes()
        while data:  # a record: length (8 bytes), checksum (4), content, checksum (4)
            length = int.from_bytes(data[:8], "little")
            event = event_pb2.Event.FromString(data[12 : 12 + length])
            found.append((event.step, {value.tag: value.simple_value for value in event.summary.value}, event))
            data = data[12 + length + 4 :]
    return found


def scalars(folder, tag):
    return sorted((step, values[tag]) for step, values, _ in events(folder) if tag in values)


def log(folder, env_steps, *steps, scale=1.0):
    tracker = TensorBoard(folder, env_steps)
    for step in steps:
        tracker.log(record(step) | {"return": scale * step}, CLOCK)
    tracker.close()


def test_tensorboard_holds_readable_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    log(tmp_path, 0, 10, 20)
    assert scalars(tmp_path, "return") == [(10, 10.0), (20, 20.0)]
    assert (20, 1234.5) in scalars(tmp_path, "steps_per_second")


def test_tensorboard_holds_the_pretraining_against_optimizer_steps(tmp_path):
    pytest.importorskip("tensorboardX")
    tracker = OptionalTracker("tensorboard", lambda: TensorBoard(tmp_path))
    tracker.pretrained({"optimizer_steps": 4, "loss": 4.5, "right": 0.25}, 8)
    tracker.close()
    assert (scalars(tmp_path, "pretraining/loss"), scalars(tmp_path, "pretraining/right")) == ([(4, 4.5)], [(4, 0.25)])


def test_tensorboard_drops_what_lies_after_the_checkpoint(tmp_path):
    pytest.importorskip("tensorboardX")
    log(tmp_path, 0, 10, 20, 30)
    log(tmp_path, 20, 30, 40, scale=2)
    assert scalars(tmp_path, "return") == [(10, 10.0), (20, 20.0), (30, 60.0), (40, 80.0)]
    starts = [step for step, _, event in events(tmp_path) if event.session_log.status == event.session_log.START]
    assert starts == [21]  # a running TensorBoard also drops later steps that it has read
    log(tmp_path, 0, 10, scale=3)  # there was no checkpoint yet
    assert scalars(tmp_path, "return") == [(10, 30.0)]


def test_an_event_that_a_kill_cut_short_is_dropped(tmp_path):
    pytest.importorskip("tensorboardX")
    log(tmp_path, 0, 10, 20)
    (file,) = (tmp_path / "tensorboard").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    log(tmp_path, 20, 30)
    assert scalars(tmp_path, "return") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert (
        len(scalars(tmp_path, "seconds_left")) == 2
    )  # the truncated event is gone, and its file can be read to the end


def test_steps_of_more_than_32_bits(tmp_path):
    pytest.importorskip("tensorboardX")
    log(tmp_path, 0, 2**31, 2**33)
    log(tmp_path, 2**31, 2**34)
    assert [step for step, _ in scalars(tmp_path, "return")] == [2**31, 2**34]


# --- failures ---


@pytest.mark.parametrize(("extra", "module"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")])
def test_a_missing_extra_is_named(tmp_path, monkeypatch, extra, module):
    monkeypatch.setitem(sys.modules, module, None)  # simulates a package that is not installed
    makers = {"wandb": lambda: WandB(tmp_path, {}), "tensorboard": lambda: TensorBoard(tmp_path)}
    for attempt in (makers[extra], lambda: load_extra(extra), lambda: OptionalTracker(extra, makers[extra])):
        with pytest.raises(ConfigError) as error:
            attempt()
        assert str(error.value) == f"track is '{extra}'; it needs: pip install 'relic-jax[{extra}]'"


class Failing:
    def __init__(self, at):
        self.at, self.seen = at, []

    def log(self, record, clock):
        self.seen.append(record["env_steps"])
        if record["env_steps"] == self.at:
            raise OSError(28, "No space left on device")

    def close(self):
        self.seen.append("closed")


def test_a_failure_is_one_line_and_the_tracker_gets_nothing_more(capsys):
    failing = Failing(20)
    tracker = OptionalTracker("tensorboard", lambda: failing)
    for step in (10, 20, 30):
        tracker.log(record(step), CLOCK)
    tracker.close()
    assert failing.seen == [10, 20]
    said = "relic-jax: tensorboard: OSError: [Errno 28] No space left on device; training continues without it\n"
    assert capsys.readouterr() == ("", said)


def test_a_tracker_that_cannot_be_made_is_one_line(tmp_path, capsys):
    pytest.importorskip("tensorboardX")
    (tmp_path / "tensorboard").write_text("not a folder")
    tracker = OptionalTracker("tensorboard", lambda: TensorBoard(tmp_path))
    tracker.log(record(10), CLOCK)
    tracker.close()
    assert capsys.readouterr().err.count("\n") == 1


def test_a_full_disk_does_not_block_tensorboard(tmp_path, capsys):
    """tensorboardX writes in a thread that a full disk stops. Without handling, later calls would block."""
    pytest.importorskip("tensorboardX")
    made = TensorBoard(tmp_path)
    tracker = OptionalTracker("tensorboard", lambda: made)

    def full(*_):
        raise OSError(28, "No space left on device")

    made._writer._py_recordio_writer._writer.write = None
    made._writer._py_recordio_writer._writer = type("Full", (), {"write": full, "flush": full, "close": full})()

    def train():
        for step in range(100):
            tracker.log(record(step), CLOCK)
        tracker.close()

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(20)
    assert not thread.is_alive() and capsys.readouterr().err.count("\n") == 1


# --- W&B ---


class FakeRun:
    def __init__(self, options):
        self.options, self.logged, self.axes, self.finished = options, [], [], False

    def define_metric(self, name, step_metric=None):
        self.axes.append((name, step_metric))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished = True


class FakeWandB:
    """A fake of W&B. Online runs raise `refuses`."""

    Settings = dict

    def __init__(self, refuses=None):
        self.runs, self.refuses = [], refuses

    def init(self, **options):
        if self.refuses is not None and options.get("mode") != "offline":
            raise self.refuses
        self.runs.append(FakeRun(options))
        return self.runs[-1]


@pytest.fixture
def fake(monkeypatch):
    def install(**options):
        module = FakeWandB(**options)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return install


def test_wandb_gets_every_record_over_env_steps(tmp_path, fake):
    wandb = fake()
    tracker = WandB(tmp_path, {"seed": 0}, WandBOptions("mine", "me", "a group", ("x", "y")))
    tracker.pretrained({"optimizer_steps": 4, "loss": 1.0}, 8)
    tracker.log(record(10), CLOCK)
    tracker.close()
    (run,) = wandb.runs
    pretraining = {"pretraining/optimizer_steps": 4, "pretraining/loss": 1.0}
    assert run.logged == [pretraining, {**record(10), **CLOCK}] and run.finished
    assert run.axes == [("env_steps", None), ("pretraining/*", "pretraining/optimizer_steps"), ("*", "env_steps")]
    wanted = {"project": "mine", "entity": "me", "group": "a group", "tags": ["x", "y"], "name": tmp_path.name}
    assert {name: run.options[name] for name in wanted} == wanted and run.options["config"] == {"seed": 0}


def test_a_resumed_run_goes_on_in_the_same_wandb_run(tmp_path, fake):
    wandb = fake()
    WandB(tmp_path, {}, WandBOptions("mine", tags=("x",)))
    WandB(tmp_path, {})  # options do not have to be set again
    first, second = (run.options for run in wandb.runs)
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert (second["project"], second["tags"]) == ("mine", ["x"])
    (tmp_path / "other").mkdir()
    WandB(tmp_path / "other", {})
    assert wandb.runs[-1].options["id"] != first["id"]
    with pytest.raises(ConfigError, match=r"wandb\.project is 'theirs'; allowed: 'mine', which this run is in"):
        wandb_run(tmp_path, WandBOptions("theirs"))
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(ConfigError, match=r"allowed: if '.*wandb\.json' can be read"):
        wandb_run(tmp_path, WandBOptions())


def test_without_a_network_or_a_login_a_session_is_offline(tmp_path, fake, capsys):
    wandb = fake(refuses=RuntimeError("No API key configured.\nUse `wandb login` to log in."))
    tracker = WandB(tmp_path, {})
    tracker.log(record(10), CLOCK)
    tracker.close()
    (run,) = wandb.runs
    assert run.options["mode"] == "offline" and run.logged and run.finished
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "No API key configured" in err and "logged offline" in err and "wandb sync" in err


def test_an_end_that_hangs_is_not_waited_for(tmp_path, fake, capsys, monkeypatch):
    fake()
    monkeypatch.setattr(WandB, "FINISH", 0.1)
    tracker, ended = WandB(tmp_path, {}), threading.Event()
    tracker._run.finish = ended.wait
    tracker.close()
    ended.set()
    assert "some data was not sent" in capsys.readouterr().err


def test_the_real_wandb_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for steps in ((10, 20, 30), (20, 30, 40)):  # the second after a checkpoint at 10
        tracker = WandB(tmp_path, {"seed": 0}, WandBOptions(tags=("x",)))
        for step in steps:
            tracker.log(record(step), CLOCK)
        tracker.close()
        time.sleep(1.1)  # W&B names the logs of a run by the second
    kept = json.loads((tmp_path / "wandb.json").read_text())
    files = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert (
        {file.name for file in files} == {f"run-{kept['id']}.wandb"}
        and len(files) == 2
        and kept["project"] == "relic-jax"
    )
    assert all(b"env_steps" in file.read_bytes() for file in files)
    assert dashboards.load_extra("wandb").run is None  # no file remains open
