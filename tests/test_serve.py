"""The local server: a tiny real model behind it, and every request that it must refuse."""

import contextlib
import html
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from helpers import refused
from planted import interactions_of, random_stories, tiny_llama, word_tokenizer

ROOT = Path(__file__).parents[1]
OWN = "http://127.0.0.1:8000"
PAGE = "<!doctype html><title>explorer</title>"
FEATURES = ["0/3", "0/5"]


@pytest.fixture(scope="module")
def bc():
    """The modules under test, imported under the shape-checking hook."""
    from bilinear_circuits.commands import explore, serve
    from bilinear_circuits.data import stories as data
    from bilinear_circuits.interactions import activity
    from bilinear_circuits.report import serving

    return SimpleNamespace(activity=activity, data=data, serving=serving, explore=explore, serve=serve)


@pytest.fixture(scope="module")
def answers(bc):
    """What answers prompts: two features of a random model of three layers."""
    model, tokenizer = tiny_llama(), word_tokenizer()
    model.tokenizer = tokenizer
    interactions = [interactions_of(model, 0)]
    tokens = bc.data.tokenize_stories(random_stories(6), tokenizer, 16)
    activities = bc.activity.collect_activity(model, interactions, tokens)
    return SimpleNamespace(tokenizer=tokenizer, explain=bc.explore.PromptAnswers(model, activities, [(0, 3), (0, 5)]))


def client_of(app, base_url=OWN):
    from starlette.testclient import TestClient

    return TestClient(app, base_url=base_url, raise_server_exceptions=False)


def app_of(bc, answer=lambda text, features: {"text": text, "features": features}, count=len, **limits):
    return bc.serving.make_app(
        PAGE, answer, features=FEATURES, count_tokens=lambda text: count(text.split()), **{"max_tokens": 8, **limits}
    )


@pytest.fixture
def client(bc):
    return client_of(app_of(bc))


def ask(client, content=None, **headers):
    body = json.dumps({"text": "the cat"} if content is None else content)
    sent = {"content-type": "application/json", "origin": OWN, **headers}
    return client.post("/api/prompt", content=body, headers={key: value for key, value in sent.items() if value})


def test_a_prompt_is_answered_by_the_model(bc, answers):
    names = {"0/3": (0, 3), "0/5": (0, 5)}
    app = bc.serving.make_app(
        PAGE,
        lambda text, features: answers.explain(text, [names[one] for one in features]),
        features=FEATURES,
        count_tokens=lambda text: len(answers.tokenizer.encode(text, add_special_tokens=False)),
        max_tokens=15,
    )
    reply = ask(client_of(app), {"text": "the cat sat", "features": ["0/5"]})
    assert reply.status_code == 200
    answer = reply.json()
    assert answer["tokens"] == ["the", "cat", "sat"]
    assert list(answer["features"]) == ["0/5"]
    feature = answer["features"]["0/5"]
    for position, pre_activation in zip(feature["positions"], feature["pre_activation"], strict=True):
        assert sum(position["terms"].values()) == pytest.approx(pre_activation, rel=1e-4, abs=1e-5)
        pairs = sum(contribution for *_, contribution in position["pairs"])
        assert pairs + position["rest"] == pytest.approx(position["terms"]["feature_feature"], rel=1e-4, abs=1e-6)
    assert set(ask(client_of(app), {"text": "the cat"}).json()["features"]) == set(FEATURES)


def test_the_page_is_given_and_nothing_may_keep_or_frame_it(client):
    for path in ("/", "/missing", "/favicon.ico"):
        reply = client.get(path)
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["cache-control"] == "no-store"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in reply.headers
    assert client.get("/").text == PAGE
    assert client.get("/missing").status_code == 404
    assert client.get("/api/prompt").status_code == 405
    assert client.get("/").headers["content-type"] == "text/html; charset=utf-8"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:8001"},
        {"origin": "https://127.0.0.1:8000"},
        {"origin": "null"},
        {"origin": None, "sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_other_origins_are_refused(client, headers):
    reply = ask(client, **{name.replace("_", "-"): value for name, value in headers.items()})
    assert reply.status_code == 403
    assert reply.json()["error"].startswith(f"prompts must come from {OWN}")
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_a_preflight_of_another_origin_is_refused(client):
    reply = client.options("/api/prompt", headers={"origin": "https://evil.example"})
    assert reply.status_code == 403


@pytest.mark.parametrize(
    "headers", [{}, {"sec-fetch-site": "same-origin"}, {"origin": None}, {"sec-fetch-site": "none"}]
)
def test_the_page_itself_and_tools_are_answered(client, headers):
    assert ask(client, **headers).status_code == 200


def test_a_link_from_another_site_opens_the_page(client):
    linked = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert client.get("/", headers=linked).status_code == 200
    assert client.get("/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}).status_code == 403
    assert ask(client, **linked).status_code == 403


def test_other_names_of_this_machine_are_refused(bc):
    for host in ("rebound.example:8000", "127.0.0.1.example", "0.0.0.0:8000"):
        client = client_of(app_of(bc), f"http://{host}")
        assert client.get("/").status_code == 400
        assert ask(client, origin=f"http://{host}").status_code == 400
    assert client_of(app_of(bc), "http://localhost:8000").get("/").status_code == 200


def test_long_bodies_are_refused_before_they_are_read(bc, client):
    assert ask(client, {"text": "a" * 5000}).status_code == 413

    def chunks():
        for _ in range(10):
            yield b"a" * 1000

    headers = {"content-type": "application/json", "origin": OWN}
    reply = client.post("/api/prompt", content=chunks(), headers=headers)
    assert reply.status_code == 413
    assert reply.json() == {"error": "a prompt must be at most 4096 bytes long"}
    for length in ("9" * 30, "-1", "x"):
        assert ask(client, **{"content-length": length}).status_code == 413


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("application/json; charset=utf-8", 200),
        (None, 415),
    ],
)
def test_only_json_is_read(client, kind, status):
    assert ask(client, **{"content-type": kind}).status_code == status


@pytest.mark.parametrize(
    ("content", "status", "message"),
    [
        ([], 400, "a prompt must be {"),
        ({"features": ["0/3"]}, 400, "a prompt must be {"),
        ({"text": "a", "more": 1}, 400, "a prompt must be {"),
        ({"text": " "}, 400, "text must be a text that is not empty"),
        ({"text": 5}, 400, "text must be a text that is not empty"),
        ({"text": "\ud800"}, 400, "text must be a text that is not empty"),
        ({"text": "a", "features": []}, 400, "features must be a list of names"),
        ({"text": "a", "features": "0/3"}, 400, "features must be a list of names"),
        ({"text": "a", "features": ["0/3", "9/9", "<b>"]}, 400, "features must be among 0/3, 0/5, got 9/9, <b>"),
        ({"text": "a " * 9}, 413, "text must be of 1 to 8 tokens, got 9."),
    ],
)
def test_bad_prompts_are_refused_in_one_line(client, content, status, message):
    reply = ask(client, content)
    assert reply.status_code == status
    assert reply.json()["error"].startswith(message)


def test_what_is_no_json_is_refused(client):
    for body in (b"{", b"\xff\xfe", b"[" * 4000, b""):
        headers = {"content-type": "application/json", "origin": OWN}
        reply = client.post("/api/prompt", content=body, headers=headers)
        assert (reply.status_code, reply.json()) == (400, {"error": "a prompt must be JSON"})


def test_what_the_model_refuses_and_where_it_fails(bc):
    def answer(text, features):
        if text == "fail":
            raise RuntimeError("secret path")
        raise ValueError("prompt must hold at least one token")

    client = client_of(app_of(bc, answer))
    assert ask(client).json() == {"error": "prompt must hold at least one token"}
    assert ask(client).status_code == 400
    reply = ask(client, {"text": "fail"})
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert ask(client).status_code == 400  # and goes on


def test_one_prompt_at_a_time(bc):
    started, finish = threading.Event(), threading.Event()

    def answer(text, features):
        started.set()
        assert finish.wait(10)
        return {"text": text}

    replies = []
    with client_of(app_of(bc, answer)) as client:
        first = threading.Thread(target=lambda: replies.append(ask(client, {"text": "first"})))
        first.start()
        assert started.wait(10)
        busy = ask(client, {"text": "second"})
        page = client.get("/")
        finish.set()
        first.join(10)
        assert busy.status_code == 503
        assert busy.json() == {"error": "the model is busy with another prompt; try again in a moment"}
        assert busy.headers["retry-after"] == "2"
        assert page.status_code == 200
        assert replies[0].json() == {"text": "first"}
        assert ask(client, {"text": "third"}).json() == {"text": "third"}


def test_limits_must_be_positive(bc):
    with refused(ValueError, "max_tokens must be at least 1, got 0"):
        app_of(bc, max_tokens=0)
    with refused(ValueError, "max_bytes must be at least 1, got -1"):
        app_of(bc, max_bytes=-1)


def test_a_port_in_use_is_said_and_any_free_one_is_found(bc, capsys):
    from bilinear_circuits import cli

    with bc.serve.bound(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
        port = listener.getsockname()[1]
        listener.listen()
        with pytest.raises(ValueError, match=f"port must be free, got {port}, which another program uses"):
            bc.serve.bound(port)
        assert cli.main(["serve", "--features", "4/143", "--port", str(port)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    with bc.serve.bound(port) as again:
        assert isinstance(again, socket.socket)


def test_options_that_make_no_sense_are_refused(bc):
    with refused(ValueError, "port must be between 0 and 65535, got 70000"):
        bc.serve.Arguments(port=70000)
    with refused(ValueError, "max_tokens must be at least 1, got 0"):
        bc.serve.Arguments(max_tokens=0)


SERVER = """
from bilinear_circuits.commands import serve
from bilinear_circuits.report.connections import ImpatientConnection
from bilinear_circuits.report.serving import make_app
ImpatientConnection.patience = 1.5
app = make_app("page", lambda text, features: {"text": text}, features=["0/3"], count_tokens=len, max_tokens=9)
with serve.bound(0) as listener:
    serve.serve(app, listener)
"""


@pytest.mark.slow
def test_the_server_reads_no_more_than_it_must_and_ends_when_interrupted():
    """The real server in a process of its own: an endless body is cut short, Ctrl-C ends it with 0."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            said = process.stdout.readline()
            port = int(re.fullmatch(r"the explorer is at http://127\.0\.0\.1:(\d+)/ \(Ctrl-C ends it\)\n", said)[1])
            assert httpx.get(f"http://127.0.0.1:{port}/").text == "page"
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                head = f"POST /api/prompt HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
                connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1388\r\n".encode() + b"a" * 5000 + b"\r\n")
                assert connection.recv(12) == b"HTTP/1.1 413"  # though the body has not ended
            started = time.monotonic()
            with contextlib.ExitStack() as stack:
                waiting = []
                for half in (b"", b"GET / HT", f"{head}Content-Length: 20\r\n\r\n{{".encode()):
                    waiting.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10)))
                    waiting[-1].sendall(half)
                assert [one.recv(100) for one in waiting] == [b"", b"", b""]  # given up by the server
            assert time.monotonic() - started > 1
            with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
                connection.sendall(f"{head}Content-Length: 20\r\n\r\n{{".encode())  # hangs up in the middle
            assert httpx.get(f"http://127.0.0.1:{port}/").text == "page"
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 0
            assert process.stderr.read() == "stopped\n"
        finally:
            process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/")


@pytest.mark.slow
def test_the_verb_serves_the_explorer_of_the_shipped_model(bc):
    app = bc.serve.explorer_app(bc.serve.Arguments(features=["4/143"], n_stories=40, max_tokens=1000))
    client = client_of(app)
    page = client.get("/").text
    assert '"live":true' in page
    assert "connect-src 'self'" in html.unescape(page)
    answer = ask(client, {"text": "the dog was not good", "features": ["4/143"]}).json()
    assert answer["tokens"] == ["the", "dog", "was", "not", "good"]
    assert answer["features"]["4/143"]["activation"][3] > 0
    refusal = ask(client, {"text": "the " * 300})
    assert (refusal.status_code, refusal.json()["error"]) == (413, "text must be of 1 to 255 tokens, got 300.")
