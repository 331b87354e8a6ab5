"""What is told of steps while they run: in the log always, in the terminal where no bar shows it."""

import json
import re

import numpy as np
import pytest

from deeplab_jax.progress import duration
from train.journal import Journal
from train.meter import Meter
from train.writers import open_writers


def train(folder, first, last, *, total=12, log_every=4, losses=float):
    writers = open_writers((), folder, start=first - 1, config={})
    with Journal(
        folder, total=total, start=first - 1, is_main_process=True, writers=writers
    ) as journal:
        meter = Meter(None, journal, batch_size=8, log_every=log_every, total=total)
        for step in range(first, last + 1):
            metrics = {"loss": losses(step), "gradient_norm": 1.0, "learning_rate": 0.0029}
            meter.add(step, metrics, np.arange(8))
            if step == 6:
                meter.catch_up()
                meter.restart()  # as an evaluation does
        meter.catch_up()
    return [line[20:] for line in (folder / "log.txt").read_text().splitlines()]


def test_a_line_every_so_many_steps_without_a_terminal(tmp_path, capsys):
    lines = train(tmp_path, 1, 12)
    speed = r"[0-9.]+ images/s, 0:00 left"
    for line, (step, loss) in zip(lines, ((4, 2.5), (8, 6.5), (12, 10.5)), strict=True):
        expected = rf"step {step} of 12: loss {loss}000, learning rate 0\.0029, {speed}"
        assert re.fullmatch(expected, line)
    assert capsys.readouterr().err.splitlines() == lines
    begun, *numbers = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert begun.keys() == {"step", "time"}
    assert [(line["step"], line["train/loss"]) for line in numbers] == [
        (4, 2.5),
        (8, 6.5),
        (12, 10.5),
    ]


def test_a_terminal_has_the_bar_and_the_log_the_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes anything for a terminal
    assert len(train(tmp_path, 1, 12)) == 3
    assert "step 4 of 12" not in capsys.readouterr().err


def test_the_first_mean_after_a_resume_says_of_how_many_steps_it_is(tmp_path):
    train(tmp_path, 1, 5)
    lines = train(tmp_path, 6, 12)
    assert "step 8 of 12: loss 7.0000 (mean of 3 steps), learning" in lines[-2]
    assert "step 12 of 12: loss 10.5000, learning" in lines[-1]


def test_the_first_step_has_no_speed_as_it_compiles(tmp_path):
    lines = train(tmp_path, 1, 2, log_every=1)
    assert lines[0] == "step 1 of 12: loss 1.0000, learning rate 0.0029"
    assert "images/s" in lines[1]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.2, "0:00"), (100, "1:40"), (59.7, "1:00"), (3599.6, "1:00:00"), (360_065, "100:01:05")],
)
def test_durations_are_written_as_clocks_show_them(seconds, shown):
    assert duration(seconds) == shown
