"""Jobs are real processes: one at a time, in order, stopped as by Ctrl-C; their bars are read as tqdm writes them."""

import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tqdm import tqdm

from onbrand.ui.jobs import Job, Jobs, said
from worlds import raises


def wait(until: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(params=["heeded", "ignored"])
def interruptions(request: pytest.FixtureRequest) -> Iterator[None]:
    """As at a terminal, and as in what a script begins by `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if request.param == "ignored" else signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    (tmp_path / "good.json").write_text("[1, 2]")
    (tmp_path / "bad.json").write_text("[1,")
    return Jobs(tmp_path)


def test_one_after_the_other_until_one_fails(jobs: Jobs, tmp_path: Path) -> None:
    good, bad = ["json.tool", "good.json", "a.json"], ["json.tool", "bad.json"]
    first = jobs.add("first", "Acme", [good, ["json.tool", "a.json", "b.json"]], tmp_path / "1.log")
    second = jobs.add("second", "Acme", [bad, ["json.tool", "good.json", "c.json"]], tmp_path / "2.log")
    third = jobs.add("third", "Other", [good], tmp_path / "3.log")
    wait(lambda: third.state == "done")
    assert (first.state, second.state) == ("done", "failed")
    assert json.loads((tmp_path / "b.json").read_text()) == [1, 2]
    assert not (tmp_path / "c.json").exists()
    assert "Expecting value" in said(second)
    assert jobs.last("Acme") is second and jobs.last() is third


@pytest.mark.usefixtures("interruptions")
def test_a_stopped_job_is_interrupted_and_the_next_runs(jobs: Jobs, tmp_path: Path) -> None:
    server = jobs.add("server", "Acme", [["http.server", "0", "--bind", "127.0.0.1"]], tmp_path / "1.log")
    after = jobs.add("after", "Acme", [["json.tool", "good.json"]], tmp_path / "2.log")
    wait(lambda: "Serving HTTP" in "\n".join(server.lines()))
    assert jobs.running is server and jobs.waiting == [after]
    with raises("option", "server of Acme"):
        jobs.add("server", "Acme", [], tmp_path / "1.log")
    jobs.stop()
    wait(lambda: after.state == "done")
    assert server.state == "stopped" and "interrupt" in said(server)


def test_a_job_that_heeds_no_interruption_is_killed(
    jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onbrand.ui.jobs.PATIENCE", 0.3)
    setup = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True)"
    deaf = jobs.add(
        "deaf", "Acme", [["timeit", "-n", "1", "-r", "1", "-s", setup, "time.sleep(60)"]], tmp_path / "1.log"
    )
    wait(lambda: "deaf" in deaf.lines())
    jobs.end()
    assert deaf.process is not None and deaf.process.returncode == -signal.SIGKILL
    assert deaf.state == "stopped"


def test_the_end_waits_for_what_runs(jobs: Jobs, tmp_path: Path) -> None:
    server = jobs.add("server", "Acme", [["http.server", "0", "--bind", "127.0.0.1"]], tmp_path / "1.log")
    waiting = jobs.add("after", "Acme", [["json.tool", "good.json"]], tmp_path / "2.log")
    wait(lambda: "Serving HTTP" in "\n".join(server.lines()))
    jobs.end()
    assert server.process is not None and server.process.poll() is not None
    assert waiting.state == "stopped" and not waiting.log.exists()


@pytest.mark.parametrize("unit", [" images", "it", " x 8"])
def test_reads_the_bar_that_tqdm_draws(tmp_path: Path, unit: str) -> None:
    text = io.StringIO()
    bar = tqdm(total=40, desc="encode", unit=unit, file=text, mininterval=0, ncols=100)
    bar.start_t -= 10
    bar.update(10)
    job = Job("fit", "Acme", [], tmp_path / "log")
    job.log.write_text(f"40 photos\n{text.getvalue()}")
    what, share, words = job.progress() or ("", 0.0, "")
    assert (what, share) == ("encode", 0.25)
    assert words.startswith("10 of 40, ") and words.endswith(" left") and unit.strip() in words
    assert job.lines() == ["40 photos"]


def test_of_a_failed_job_the_error_alone_is_shown(tmp_path: Path) -> None:
    job = Job("fit", "Acme", [], tmp_path / "log", "failed")
    job.log.write_text("reading\nonbrand: warning: odd\nonbrand: error: no photos: take others [data]\n")
    assert said(job) == "error: no photos: take others [data]"
    job.state = "done"
    assert said(job) == "warning: odd\nerror: no photos: take others [data]"


def test_the_command_is_python_of_this_environment(jobs: Jobs, tmp_path: Path) -> None:
    job = jobs.add("which", "Acme", [["sysconfig"]], tmp_path / "1.log")
    wait(lambda: job.state == "done")
    assert sys.prefix in job.log.read_text()
