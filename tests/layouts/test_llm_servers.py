"""Servers that do not speak HTTP, or never end: one message in bounded time, and the key in none of it."""

import contextlib
import re
import socket
import threading
import time

import pytest

from ccdiff_cli.errors import CCDiffError
from ccdiff_cli.layouts.llm import Endpoint, read_answer
from tests.layouts.test_llm import SCENE, SIZES

OK = b"HTTP/1.1 200 OK\r\n"
BODY = b'{"choices":[{"message":{"content":"%s"}}]}'
KEY = "sk-not-to-be-seen-0123456789"


class RawServer:
    """Every request is read whole, then answered by ``talk(connection, request)``."""

    def __init__(self, talk):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(9)
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.asked = 0
        self.talk, self.ended = talk, threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while not self.ended.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            self.asked += 1
            with connection, contextlib.suppress(OSError):
                self.talk(connection, self._whole_request(connection))

    @staticmethod
    def _whole_request(connection):
        """Head and body: what is left unread when a connection is closed resets it, and the answer may be lost."""
        data = connection.recv(1 << 16)
        while (length := re.search(rb"content-length: (\d+)", data, re.I)) and len(data.partition(b"\r\n\r\n")[2]) < int(length[1]):
            data += connection.recv(1 << 16)
        return data

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


def says(data):
    return lambda connection, request: connection.sendall(data)


def refused(server, **options):
    """The one message for a question, where it ends in one, and how long it took."""
    start = time.monotonic()
    with pytest.raises(CCDiffError) as caught:
        Endpoint(server.url, "m", **{"wait": 0.0, "timeout": 5, "key": KEY, **options}).answer([], 0, 0.0)
    assert (
        KEY not in str(caught.value) and KEY not in repr(caught.value.__context__) and caught.value.where.endswith("/v1/chat/completions")
    )
    return str(caught.value), time.monotonic() - start


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"\xaf\xe7\x1d garbage\r\n\r\n", "no answer in HTTP"),
        (b"A" * 300_000, "no answer in HTTP"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "no answer in HTTP"),
        (b"", "no answer in HTTP"),
        (OK + b"X: " + b"a" * 300_000 + b"\r\n\r\n", "no answer in HTTP"),
        (OK + b"no colon here\r\n\r\n", "no answer in HTTP"),
        (OK + b"Content-Length: minus one\r\n\r\n", "no answer in HTTP"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\nxx\r\n", "no answer in HTTP"),
        (OK + b"Content-Length: 900\r\n\r\n{}", "no answer in HTTP"),
        (OK + b"Content-Encoding: gzip\r\n\r\nnot gzip", "chat completions protocol"),
        (OK + b"".join(b"X-%d: 1\r\n" % i for i in range(500)) + b"\r\n{}", "chat completions protocol"),
        (OK + b'\r\n{"choices": [{"message": {"content": 1' + b"0" * 5000 + b"}}]}", "chat completions protocol"),
        (OK + b"\r\n" + b"x" * (2 << 20), "longer than"),
        (b"HTTP/1.1 418 \x1b[31mteapot\r\n\r\n", "HTTP 418|no answer in HTTP"),
        (b"HTTP/1.1 204 Nothing\r\n\r\n", "chat completions protocol"),
        (b"HTTP/1.1 301 There\r\nLocation: http://127.0.0.1:9/\r\n\r\n", "HTTP 301"),
    ],
    ids=range(16),
)
def test_what_is_no_answer_is_one_message(answer, words):
    with RawServer(says(answer)) as server:
        message, _ = refused(server)
    assert re.search(words, message)


@pytest.mark.parametrize("head", [b"", OK, OK + b"Content-Length: 100000\r\n\r\n", OK + b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_server_that_drips_has_so_many_seconds_in_all(head):
    def drip(connection, request):
        connection.sendall(head)
        drop = b"1\r\n \r\n" if b"chunked" in head else b" " if b"\r\n\r\n" in head else b"X"
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    with RawServer(drip) as server:
        message, seconds = refused(server, timeout=1.0)
    assert "did not answer within 1 s" in message and seconds < 4


def test_repetitions_count_into_the_same_seconds():
    with RawServer(says(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n")) as server:
        _, seconds = refused(server, timeout=1.0, wait=30)
    assert seconds < 4


def test_half_characters_and_a_key_that_is_told_back_do_not_pass():
    said = BODY % b"ship \\\\ud800 %s" % KEY.encode()
    with RawServer(says(OK + b"\r\n" + said.replace(b"\\\\", b"\\"))) as server:
        answer = Endpoint(server.url, "m", KEY).answer([], 0, 0.0)
    assert answer == "ship ? ***" and answer.encode("utf-8")


def test_a_key_at_the_edge_of_what_is_shown_is_not_shown_in_part():
    with RawServer(says(b"HTTP/1.1 400 No\r\n\r\n" + b"x" * 290 + KEY.encode())) as server:
        message, _ = refused(server)
    assert KEY[:6] not in message


@pytest.mark.parametrize("name", ["CCDIFF_LLM_KEY", "OPENAI_API_KEY"])
@pytest.mark.parametrize("end", ["\n", "\r\n", " ", "\t\n\n"])
def test_a_key_read_from_a_file_loses_its_line_end(monkeypatch, name, end):
    monkeypatch.delenv("CCDIFF_LLM_KEY", raising=False)
    monkeypatch.setenv(name, KEY + end)
    heard = []

    def talk(connection, request):
        heard.append(request)
        connection.sendall(OK + b"\r\n" + BODY % b"fine")

    with RawServer(talk) as server:
        assert Endpoint(server.url, "m").answer([], 0, 0.0) == "fine"
    assert f"authorization: bearer {KEY}\r\n".encode() in heard[0].lower()


@pytest.mark.parametrize("odd", ["a\nb", "a\x1bb", "schlüssel", "a b", "\u202eabc", "caf\udce9"])
def test_a_key_that_fits_into_no_header_is_refused_unseen(monkeypatch, odd):
    monkeypatch.setenv("CCDIFF_LLM_KEY", odd + KEY)
    with pytest.raises(CCDiffError, match="not shown") as caught:
        Endpoint("http://127.0.0.1:9/v1", "m")
    assert KEY not in str(caught.value) and odd not in str(caught.value) and "CCDIFF_LLM_KEY" in str(caught.value.where)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "ftp://h/v1",
        "http://[::1/v1",
        "http://h:99999/v1",
        "http://h:x/v1",
        "http://h\r\nX: y/v1",
        "http://a b/v1",
        "//h",
        "",
        "http://\x1b[31m/",
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(CCDiffError, match="not the address"):
        Endpoint(address, "m")


@pytest.mark.parametrize("address", ["http://:pw@h/v1", "http://me:pw@h/v1", "http://me@h/v1"])
def test_an_address_with_a_password_is_refused_unseen(address):
    with pytest.raises(CCDiffError, match="password") as caught:
        Endpoint(address, "m")
    assert "pw" not in str(caught.value)


def test_a_key_in_the_query_is_not_shown():
    endpoint = Endpoint(f"http://127.0.0.1:9/v1?key={KEY}", "m", wait=0.0)
    with pytest.raises(CCDiffError, match="cannot be reached") as caught:
        endpoint.answer([], 0, 0.0)
    assert KEY not in str(caught.value) and endpoint.url.endswith(f"/v1/chat/completions?key={KEY}")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "nonsense://x", "http://127.0.0.1:9"])
def test_a_proxy_that_does_not_work_is_one_message(monkeypatch, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(CCDiffError, match=r"cannot be reached|no answer in HTTP"):
        Endpoint("http://192.0.2.1/v1", "m", wait=0.0, timeout=10).answer([], 0, 0.0)


def test_a_long_line_of_an_answer_costs_nothing():
    start = time.monotonic()
    with pytest.raises(ValueError, match="not of that form"):
        read_answer("a" + " " * 900_000 + "b", SCENE, SIZES)
    assert time.monotonic() - start < 60  # tried at every character, it would be hours
