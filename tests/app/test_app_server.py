"""The app's server: to whom it answers, and what it refuses to a program that speaks to it without the page."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from app_screens import served

from statefield.cli.main import main

pytest.importorskip("gradio", reason="the extra app (Gradio) is not installed")
httpx = pytest.importorskip("httpx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The temporary folder of the server."""
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def address(folder):
    """Of a server whose models are none; it ends with SIGTERM, and what it leaves is looked at."""
    with served(["--max-upload", "50KB"], folder, signal.SIGTERM) as found:
        yield found


@pytest.fixture
def client(address):
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as found:
        yield found


def event(client: Any, name: str) -> dict[str, Any]:
    """The event of a button, as the page knows it: its number, and its inputs."""
    config = client.get("/config").json()
    button = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == name)
    return next(each for each in config["dependencies"] if [button, "click"] in each["targets"])


def said_by(client: Any, name: str, values: list[Any]) -> str:
    """Everything that the server streams back when the event of a button is sent by hand."""
    found = event(client, name)
    body = {"data": values, "fn_index": found["id"], "session_hash": "s1", "trigger_id": found["targets"][0][0]}
    joined = client.post("/gradio_api/queue/join", json=body)
    if joined.status_code != 200:
        return joined.text
    text = ""
    with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "s1"}) as stream:
        for line in stream.iter_lines():
            text += line + "\n"
            if "process_completed" in line or "close_stream" in line:
                break
    return text


def file_of(path: str, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


REST = [None, None, "auto", 0, False]


def test_it_answers_to_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ", str(Path(__file__).resolve())])
def test_no_path_of_a_request_is_opened(client, path):
    said = said_by(client, "tracks-run", [file_of(path), *REST])
    assert "process_completed" in said and "root:" not in said and "PATH=" not in said
    assert '"success": false' in said or '"success":false' in said or "not a file that was uploaded" in said
    answer = client.get(f"/gradio_api/file={path}")
    assert answer.status_code in (403, 404)


def test_no_address_of_a_request_is_fetched(client):
    said = said_by(client, "tracks-run", [file_of("http://127.0.0.1:9/street.txt"), *REST])
    assert "addresses are not opened" in said or '"success": false' in said or '"success":false' in said


def test_a_file_larger_than_allowed_is_refused_while_it_is_sent(client):
    answer = client.post("/gradio_api/upload", files={"files": ("large.txt", b"1," * 40_000)})
    assert answer.status_code == 413


def test_an_upload_of_another_kind_is_refused_in_one_paragraph(client):
    (path,) = client.post("/gradio_api/upload", files={"files": ("street.txt", b"<html></html>")}).json()
    said = said_by(client, "tracks-run", [file_of(path), *REST])
    assert "street.txt: its first bytes are not those of a .txt file" in said
    assert "Traceback" not in said and "statefield-app-" not in said.split("sf-error")[1][:400]


def test_there_is_no_api_and_no_word_to_others(client):
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert all(each["api_visibility"] == "private" for each in config["dependencies"])
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}
    for page in ("/docs", "/redoc", "/openapi.json"):
        assert client.get(page).status_code == 404
    assert "fonts.googleapis" not in client.get("/theme.css").text


def test_screens_without_a_model_say_how_to_make_one(client):
    shown = client.get("/config").text
    assert "make demo" in shown and "statefield change train" in shown and "tracks-run" in shown


def test_uploads_and_results_are_where_no_other_user_can_enter(address, folder):
    (private,) = folder.glob("statefield-app-*")
    assert private.stat().st_mode & 0o777 == 0o700 and (private / "uploads").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--medical", "nowhere"], "nowhere is not a run folder"),
        (["--change", "nowhere"], "nowhere is not a run folder"),
        (["--max-upload", "big"], "no size of memory"),
        (["--port", "0"], "--port 0"),
    ],
)
def test_what_cannot_be_started_is_one_paragraph(words, said, capsys):
    assert main(["app", *words]) == 2
    assert said in capsys.readouterr().err


def test_help_has_examples_and_needs_neither_gradio_nor_torch():
    code = (
        "import sys\nfrom statefield.cli.main import main\ntry:\n    main(['app', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'gradio'} & set(sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "statefield app --medical runs/demo" in shown.split("examples:")[1]
