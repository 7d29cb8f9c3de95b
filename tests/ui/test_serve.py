"""The app is one page of one machine: what it serves, to whom, and what it says before it begins."""

import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onbrand.ui.serve import ui
from worlds import raises

SECONDS = 120


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with raises("folder", tmp_path / "none"):
        ui(tmp_path / "none")
    with raises("folder", tmp_path / "none"):
        ui(tmp_path, models=tmp_path / "none")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with raises("option", port, "--port"):
            ui(tmp_path, port=port)


def test_without_gradio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    with raises("install", "onbrand[ui]"):
        ui(tmp_path, port=free_port())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextmanager
def served(root: Path) -> Iterator[str]:
    """The app's address, while a process of its own serves it."""
    port = free_port()
    command = [sys.executable, "-m", "onbrand", "ui", str(root), "--port", str(port)]
    with (root / "app.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) in (0, 130)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the app."""
    pytest.importorskip("gradio")
    root = tmp_path_factory.mktemp("studio")
    (root / "onbrand" / "Acme").mkdir(parents=True)
    (root / "onbrand" / "Acme" / "ui.json").write_text("{}")
    (root / "onbrand" / "Acme" / "report.html").write_text("<p>a report</p>")
    (root / "secret.txt").write_text("secret")
    with served(root) as address:
        yield address


def wait_for(address: str) -> None:
    end = time.monotonic() + SECONDS
    while get(address)[0] != 200:
        assert time.monotonic() < end
        time.sleep(0.2)


def get(address: str) -> tuple[int, str]:
    """Status and body; 0: nobody answers."""
    try:
        with urllib.request.urlopen(address) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


@pytest.mark.slow
def test_serves_the_page_and_a_brands_report(address: str) -> None:
    assert "window.gradio_config" in get(address)[1]
    assert get(f"{address}/report/Acme") == (200, "<p>a report</p>")
    for name in ("none", "..", "%2e%2e", "..%2f..%2fsecret.txt"):
        assert get(f"{address}/report/{name}")[0] != 200 or "secret" not in get(f"{address}/report/{name}")[1]


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/passwd", "{root}/secret.txt", "{root}/onbrand/../secret.txt"])
def test_serves_no_file_but_results(address: str, path: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.getbasetemp() / "studio0"
    status, body = get(f"{address}/gradio_api/file={path.format(root=root)}")
    assert status in (403, 404) and "secret" not in body


@pytest.mark.slow
def test_listens_to_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(OSError):  # on Linux all of 127.0.0.0/8 is this machine, and one address was asked for
        socket.create_connection(("127.0.0.2", port), timeout=2)
