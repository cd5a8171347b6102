"""``--log-with``: where a run leaves its numbers beside log.jsonl."""

import json

import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from recipe import flags, train_here, write_images

from man_zoo.console import UserError


class Recorder(tracking.GeneralTracker):
    """A tracker of one's own, known to Accelerate by name."""

    name = "recorder"
    requires_logging_directory = False
    started: list["Recorder"]

    def __init__(self, project: str, **kwargs) -> None:
        super().__init__()
        self.project, self.flags, self.lines = project, {}, []
        self.started.append(self)

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values: dict) -> None:
        self.flags = values

    def log(self, values: dict, step: int | None = None, **kwargs) -> None:
        self.lines.append((step, values))


@pytest.fixture
def recorder(monkeypatch) -> type[Recorder]:
    Recorder.started = []
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    return Recorder


@pytest.fixture
def words(tmp_path) -> list[str]:
    return flags(write_images(tmp_path / "data"), tmp_path)


def test_several_trackers_log_the_same(words, tmp_path, recorder) -> None:
    train_here(*words, "--epochs", "2", "--log-with", "tensorboard,recorder,tensorboard")
    run = tmp_path / "run"
    (tracker,) = recorder.started
    assert tracker.project == "man_zoo"
    assert tracker.flags["model"] == "resnet20_man_dgl_k4"
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [{"step": step, **values} for step, values in tracker.lines] == log
    assert len(log) == 2
    assert len(list((run / "tensorboard").iterdir())) == 1


def test_none_leaves_the_log_alone(words, tmp_path) -> None:
    train_here(*words, "--log-with", "none")
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 1


def test_a_run_goes_on_with_another_tracker(words, tmp_path, recorder) -> None:
    train_here(*words, "--log-with", "recorder")
    resume = ("--resume", str(tmp_path / "run"), "--epochs", "2", "--log-with", "none")
    train_here(*resume)
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 2
    assert len(recorder.started) == 1


def test_a_tracker_that_cannot_start_is_a_sentence(words, tmp_path, recorder, monkeypatch) -> None:
    def start(self) -> None:
        raise LookupError("no key;\nlog in first")

    monkeypatch.setattr(recorder, "start", start)
    with pytest.raises(UserError, match="--log-with recorder: no key; log in first"):
        train_here(*words, "--log-with", "recorder")


@pytest.mark.parametrize("name", ["wandbb", "tensorboard,wandbb", "none,wandbb", ""])
def test_an_unknown_tracker_is_a_sentence(words, tmp_path, name) -> None:
    with pytest.raises(UserError, match=r"Unknown tracker '.*'; expected .*tensorboard.*none"):
        train_here(*words, "--log-with", name)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_is_not_installed_is_a_sentence(words, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.TENSORBOARD])
    with pytest.raises(UserError, match="--log-with wandb: wandb is not installed"):
        train_here(*words, "--log-with", "tensorboard,wandb")
    assert not (tmp_path / "run").exists()
