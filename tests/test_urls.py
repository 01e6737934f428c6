"""A URL gives the file that it names, from a public host, within its limits, or one clear sentence.

All servers are on this machine; names are looked up in a table, and "public" addresses are led back to loopback.
"""

import ipaddress
import itertools
import os
import random
import re
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qwen2vl_io import urls
from qwen2vl_io.urls import open_url

PUBLIC, PUBLIC_TOO = "93.184.216.34", "8.8.8.8"
MEGABYTE = 10**6
SPELLINGS = [  # of 127.0.0.1, all of which a system's resolver may understand
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001"),
    *(
        "localhost",
        "localhost.",
        "LOCALHOST",
        "127.0.0.1.",
        "１２７.０.０.１",
        "127。0。0。1",
        "ⓛocalhost",
        "0",
        "0.0.0.0",
    ),
    *("[::1]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::]", "[::127.0.0.1]"),
    *("[64:ff9b::127.0.0.1]", "[2002:7f00:1::]"),
]
NOT_PUBLIC = [
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
    *("169.254.169.254", "100.64.0.1", "100.100.100.200", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.255.255.250"),
    *("240.0.0.1", "255.255.255.255", "::", "::1", "::2", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254"),
    *("168.63.129.16", "192.0.0.9", "192.0.0.170", "192.88.99.1", "2001::1", "2001:1::1", "3fff::1", "5f00::1"),
    *("2606:4700::5efe:10.0.0.1", "2606:4700::200:5efe:169.254.169.254", "fe80::5efe:8.8.8.8", "::ffff:168.63.129.16"),
    *("::ffff:0:127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::8.8.8.8", "2002:a00:1::1"),
    *("2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1"),
    *("fe80::1%eth0", "fec0::1", "ff02::1", "ff0e::1", "100::1", "::8.8.8.8"),
]
# A key that guards nothing: that of https://pictures.test in these tests, valid from 2020 to 2120.
PICTURES_TEST_PEM = """-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgupWAs0p0Jwb7Q+l0
Bc+qJlV5nt/sCajIakVybJ9fACihRANCAAQx8cF7o7I7ajef7GoFfXjqWol6IeHs
q7fEYo0mcCck+iN+xrGknVg9iT0UiVRZXF7G1hufXV5+bhZcoUN8lrB7
-----END PRIVATE KEY-----
-----BEGIN CERTIFICATE-----
MIIBfTCCASOgAwIBAgIBATAKBggqhkjOPQQDAjAYMRYwFAYDVQQDDA1waWN0dXJl
cy50ZXN0MCAXDTIwMDEwMTAwMDAwMFoYDzIxMjAwMTAxMDAwMDAwWjAYMRYwFAYD
VQQDDA1waWN0dXJlcy50ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEMfHB
e6OyO2o3n+xqBX146lqJeiHh7Ku3xGKNJnAnJPojfsaxpJ1YPYk9FIlUWVxextYb
n11efm4WXKFDfJawe6NcMFowGAYDVR0RBBEwD4INcGljdHVyZXMudGVzdDAPBgNV
HRMBAf8EBTADAQH/MA4GA1UdDwEB/wQEAwIChDAdBgNVHQ4EFgQUx9NLYKy2sqqF
q9NKqzIsohgfrWkwCgYIKoZIzj0EAwIDSAAwRQIgMDEUR/odww1xOAAls9FJP3pp
bxw2R2FgB5ZLJwfSBiMCIQCKELFX/h2Rs64aL0KQCtuScR52dlf0I+Ajw1bYhFI4
Fg==
-----END CERTIFICATE-----
"""


# --- a small internet -------------------------------------------------------------------------------------------------


def reply(body: bytes = b"", status: str = "200 OK", **headers) -> list[bytes]:
    """An HTTP answer, in pieces; `Content_Length=None` leaves that header out."""
    headers = {"Content_Length": len(body), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value is not None]
    return ["\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("utf-8"), body]


def redirect(location: str, status: int = 302) -> list[bytes]:
    return reply(status=f"{status} Elsewhere", Location=location)


class Handler(BaseHTTPRequestHandler):
    def handle(self):
        if self.server.raw is None:
            return super().handle()
        self.send_all(self.server.raw)

    def do_GET(self):
        self.server.requests.append((self.path, self.headers))
        self.send_all(self.server.pages.get(self.path, reply(b"gone", "404 Not Found")))

    def send_all(self, pieces):
        try:
            for piece in pieces() if callable(pieces) else pieces:
                self.wfile.write(piece)
        except OSError:  # the client had enough
            pass

    def log_message(self, *_):
        pass


class Site(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.pages, self.requests, self.raw = {}, [], None  # raw: sent to whoever connects, without reading
        self.stop, self.port = threading.Event(), self.server_port
        self.root = f"http://127.0.0.1:{self.port}"

    def slowly(self, *pieces: bytes):
        """One piece every 50 ms: three seconds of them at most, so that even a client with no limit comes to an end."""

        def drip():
            for piece in itertools.islice(itertools.chain(*([piece] for piece in pieces)), 60):
                yield piece
                if self.stop.wait(0.05):
                    return

        return drip

    def speak_tls(self, monkeypatch, trusted: bool = True) -> None:
        with tempfile.TemporaryDirectory() as folder:
            pem = os.path.join(folder, "pictures_test.pem")
            with open(pem, "w") as file:
                file.write(PICTURES_TEST_PEM)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(pem)
        self.socket = context.wrap_socket(self.socket, server_side=True)
        if trusted:
            make = ssl.create_default_context
            certificate = PICTURES_TEST_PEM[PICTURES_TEST_PEM.index("-----BEGIN CERT") :]
            monkeypatch.setattr(ssl, "create_default_context", lambda: make(cadata=certificate))

    def handle_error(self, *_):
        pass


@pytest.fixture
def site():
    server = Site()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


class Network:
    """Which names there are, what was looked up and which addresses were dialled."""

    def __init__(self):
        self.names = {"pictures.test": [PUBLIC]}  # a list of addresses, or a function that gives one
        self.looked_up, self.dialled = [], []
        self.refusing, self.silent = set(), set()


@pytest.fixture(autouse=True)
def network(monkeypatch) -> Network:
    network, ask = Network(), socket.getaddrinfo
    monkeypatch.setattr(urls, "ALLOW_PRIVATE", False)

    def getaddrinfo(host, port, **options):
        network.looked_up.append(host)
        if host in network.names:
            found = network.names[host]
            kinds = [
                (socket.AF_INET6 if ":" in a else socket.AF_INET, a) for a in (found() if callable(found) else found)
            ]
            return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in kinds]
        if re.fullmatch(r"localhost|[0-9a-fx.]+|.*:.*", host):  # answered without asking the network
            return ask(host, port, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    class Socket(socket.socket):
        def connect(self, address):
            network.dialled.append(address[0])
            if address[0] in network.refusing:
                raise ConnectionRefusedError(111, "Connection refused")
            if address[0] in network.silent:
                time.sleep(self.gettimeout())
                raise TimeoutError("timed out")
            super().connect(("127.0.0.1", address[1]) if address[0] in (PUBLIC, PUBLIC_TOO) else address)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(socket, "socket", Socket)
    return network


@pytest.fixture
def private_allowed(monkeypatch):
    monkeypatch.setattr(urls, "ALLOW_PRIVATE", True)


def get(url: str, max_bytes: int = MEGABYTE, seconds: float = 5) -> bytes:
    with open_url(url, max_bytes, seconds) as file:
        assert file.tell() == 0
        return file.read()


def refusal(url: str, max_bytes: int = MEGABYTE, seconds: float = 5) -> str:
    """The message with which a URL is refused: one printable sentence that names it, and nothing else."""
    with pytest.raises(ValueError) as error:
        get(url, max_bytes, seconds)
    assert type(error.value) is ValueError and error.value.__suppress_context__
    text = str(error.value)
    assert text.isprintable() and text.endswith(".") and len(text) < 700, text
    assert text.startswith(urls.shorten(url)), text
    return text


# --- what comes -------------------------------------------------------------------------------------------------------


def test_a_file_comes_as_it_is(site, private_allowed):
    body = random.Random(0).randbytes(300_000)
    site.pages["/photo.png?size=2"] = reply(body)
    assert get(f"{site.root}/photo.png?size=2#top") == body
    (path, headers), *others = site.requests
    assert not others
    assert headers["Host"] == f"127.0.0.1:{site.port}" and headers["User-Agent"] == "qwen2vl-mini"
    assert headers["Accept-Encoding"] == "identity"


def test_the_host_header_and_the_path_are_those_of_the_url(site):
    site.pages["/b%C3%BCcher/a%20b.png?q=%C3%A4&r=/?"] = reply(b"book")
    assert get(f"HTTP://Pictures.TEST:{site.port}/bücher/a%20b.png?q=ä&r=/?") == b"book"
    assert site.requests[0][1]["Host"] == f"pictures.test:{site.port}"
    site.pages["/"] = reply(b"root")
    site.pages["/?q"] = reply(b"root?")
    assert get(f"http://pictures.test:{site.port}") == b"root"
    assert get(f"http://pictures.test:{site.port}?q") == b"root?"


def test_the_default_ports_are_80_and_443():
    assert urls.parse("http://a.b/c") == ("http", "a.b", 80, "/c")
    assert urls.parse("https://a.b/c") == ("https", "a.b", 443, "/c")
    assert urls.parse("https://a.b:8443") == ("https", "a.b", 8443, "/")
    assert urls.parse("http://[2606:4700::1111]:0/") == ("http", "2606:4700::1111", 0, "/")


def test_the_host_header_has_no_default_port(site, monkeypatch):
    monkeypatch.setitem(urls.PORTS, "http", site.port)
    site.pages["/a"] = reply(b"a")
    assert get("http://pictures.test/a") == b"a"
    assert site.requests[0][1]["Host"] == "pictures.test"


def test_international_host_names_are_looked_up_in_ascii(site, network):
    network.names = {"xn--bcher-kva.test": [PUBLIC]}
    site.pages["/"] = reply(b"books")
    assert get(f"http://Bücher.test:{site.port}/") == b"books"
    assert site.requests[0][1]["Host"] == f"xn--bcher-kva.test:{site.port}"


@pytest.mark.parametrize("end", [b"0\r\n\r\n", b"0\r\nX-Trailer: 1\r\n\r\n"])
def test_chunked_bodies_and_bodies_without_a_length(site, private_allowed, end):
    head = reply(Content_Length=None, Transfer_Encoding="chunked")
    site.pages["/chunked"] = [*head, b"5\r\nhello\r\n", b"6;extension\r\n world\r\n", end]
    site.pages["/until-closed"] = reply(b"hello", Content_Length=None)
    site.pages["/empty"] = reply(b"")
    assert get(f"{site.root}/chunked") == b"hello world"
    assert get(f"{site.root}/until-closed") == b"hello"
    assert get(f"{site.root}/empty") == b""


def test_bytes_after_the_content_length_are_no_part_of_the_file(site, private_allowed):
    site.pages["/long"] = reply(b"hello, world", Content_Length=5)
    assert get(f"{site.root}/long") == b"hello"


def test_large_files_go_to_disk(site, private_allowed, monkeypatch):
    monkeypatch.setattr(urls, "MEMORY_BYTES", 1000)
    body = random.Random(0).randbytes(5000)
    site.pages = {"/large": reply(body), "/small": reply(body[:1000])}
    with open_url(f"{site.root}/large", MEGABYTE, 5) as file:
        assert file._rolled and file.read() == body  # tempfile has no public way to ask
    with open_url(f"{site.root}/small", MEGABYTE, 5) as file:
        assert not file._rolled and file.read() == body[:1000]


def test_proxies_of_the_environment_are_not_asked(site, private_allowed, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    site.pages["/a"] = reply(b"a")
    assert get(f"{site.root}/a") == b"a"


# --- URLs that are none -----------------------------------------------------------------------------------------------


NO_URLS = {
    "neither an http nor an https": [
        *("", "a.png", "//pictures.test/a", "ftp://pictures.test/a", "file:///etc/passwd", "javascript:alert(1)"),
        *("gopher://pictures.test/", "httpx://pictures.test/", "data:text/plain,a"),
    ],
    "names no host": ["http://", "http:///a", "https:a.png", "http://:80/", "http://?a", "http:\\\\pictures.test"],
    "user name or password": [
        *(f"http://{who}@pictures.test/" for who in ("user:pass", "user", "", "a@b", "a%40b", "user:pass@a")),
        "http://pictures.test\\@127.0.0.1/",
    ],
    "control character": [
        *(f"http://pictures.test/a{c}b" for c in " \t\r\n\0\x1b\x7f\x85\xa0\u2028\u3000\ud800"),
        *(" http://pictures.test/", "http://pictures.test/\n", "http://pictures.test/ HTTP/1.1\r\nHost: inner.test"),
    ],
    "no valid URL": ["http://[::1/", "http://::1]/", "http://pictures.test:99999/", "http://pictures.test:a/"],
    "no valid host": [
        *(f"http://{host}/" for host in (".", "a..b", ".a", "a%2eb", "127%2e0.0.1", "a\\b", "a,b", "<script>", "a_b!")),
        *(f"http://{host}/" for host in ("a" * 64, "a." * 200, "ü" * 2000)),
    ],
    # which of the two it is depends on the version of Python
    "no valid ": [f"http://{host}/" for host in ("[::1]a", "a[::1]", "[::g]", "[1.2.3.4]", "[v1.a]", "[]", "[::1]:a")],
    "more than the limit of 8,192": ["http://pictures.test/" + "a" * 9000],
}


@pytest.mark.parametrize("reason", NO_URLS)
def test_urls_that_are_refused_unseen(network, reason):
    for url in NO_URLS[reason]:
        text = refusal(url)
        assert reason in text and "pass@" not in text
    assert network.looked_up == network.dialled == []


def test_a_host_that_does_not_exist_and_a_port_that_is_closed(site, private_allowed):
    assert "nowhere.test" in refusal("http://nowhere.test/a.png")
    site.shutdown()
    site.socket.close()
    assert "(Connection refused); save it to a file and pass the path." in refusal(f"{site.root}/a.png")


# --- hosts that are not public ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", SPELLINGS)
def test_loopback_is_refused_however_it_is_spelled(site, network, host):
    site.pages["/"] = reply(b"secret")
    text = refusal(f"http://{host}:{site.port}/")
    assert "no public address" in text and "--allow-private-urls" in text
    assert network.dialled == []


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost."])
def test_the_same_spellings_are_reached_where_private_hosts_are_allowed(site, private_allowed, host):
    site.pages["/"] = reply(b"secret")
    assert get(f"http://{host}:{site.port}/") == b"secret"


@pytest.mark.parametrize("address", NOT_PUBLIC)
def test_names_that_lead_to_addresses_that_are_not_public(network, address):
    network.names["inner.test"] = [address]
    text = refusal("http://inner.test/latest/meta-data")
    assert f"is at {address}, which is no public address" in text and network.dialled == []
    network.names["inner.test"] = [PUBLIC, address, PUBLIC_TOO]  # one of them is one too many
    assert "no public address" in refusal("http://inner.test/") and network.dialled == []


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC,
        "8.8.8.8",
        "2606:4700:4700::1111",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2002:808:808::1",
        "2606:4700::5efe:8.8.8.8",
    ],
)
def test_public_addresses(address):
    assert urls.is_public(address)
    ipaddress.ip_address(address)


def test_the_environment_variable_allows_private_hosts():
    for value, allowed in ("1", "True"), ("0", "False"), ("", "False"):
        run = subprocess.run(
            [sys.executable, "-c", "from qwen2vl_io import urls; print(urls.ALLOW_PRIVATE)"],
            cwd=Path(urls.__file__).parent.parent,
            env={**os.environ, "QWEN2VL_ALLOW_PRIVATE_URLS": value},
            capture_output=True,
            text=True,
        )
        assert run.stdout.strip() == allowed


def test_rebinding_a_name_that_answers_differently_the_second_time(site, network):
    answers = iter([[PUBLIC], ["127.0.0.1"], ["127.0.0.1"]])
    network.names["rebinding.test"] = lambda: next(answers)
    site.pages["/"] = reply(b"public")
    assert get(f"http://rebinding.test:{site.port}/") == b"public"
    assert network.looked_up == ["rebinding.test"] and network.dialled == [PUBLIC]
    assert "no public address" in refusal(f"http://rebinding.test:{site.port}/")  # a new look-up is a new check
    assert network.dialled == [PUBLIC]


def test_rebinding_between_redirects(site, network):
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    network.names["rebinding.test"] = lambda: next(answers)
    site.pages = {"/": redirect("/secret"), "/secret": reply(b"secret")}
    assert "no public address" in refusal(f"http://rebinding.test:{site.port}/")
    assert network.dialled == [PUBLIC] and len(site.requests) == 1


def test_an_address_that_does_not_answer_leaves_time_for_the_next(site, network):
    network.names["pictures.test"] = [PUBLIC_TOO, PUBLIC]
    site.pages["/"] = reply(b"found")
    network.refusing = {PUBLIC_TOO}
    assert get(f"http://pictures.test:{site.port}/") == b"found"
    network.refusing, network.silent = set(), {PUBLIC_TOO}
    assert get(f"http://pictures.test:{site.port}/", seconds=1) == b"found"
    assert network.dialled == [PUBLIC_TOO, PUBLIC] * 2
    network.silent.add(PUBLIC)
    assert "did not arrive within 0.2 seconds" in refusal(f"http://pictures.test:{site.port}/", seconds=0.2)


# --- redirects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(site, network, status):
    network.names["other.test"] = [PUBLIC_TOO]
    site.pages = {
        "/a/b": redirect("../c", status),
        "/c": redirect(f"//other.test:{site.port}/ü-Å-…", status),
        "/%C3%BC-%C3%85-%E2%80%A6": reply(b"there"),
    }
    assert get(f"http://pictures.test:{site.port}/a/b") == b"there"
    assert network.dialled == [PUBLIC, PUBLIC, PUBLIC_TOO]
    assert site.requests[2][1]["Host"] == f"other.test:{site.port}"


def test_five_redirects_are_followed_and_not_six(site, private_allowed):
    site.pages = {f"/{i}": redirect(f"/{i + 1}") for i in range(6)} | {"/6": reply(b"end"), "/loop": redirect("/loop")}
    assert get(f"{site.root}/1") == b"end"
    assert "redirects more than 5 times" in refusal(f"{site.root}/0")
    site.requests.clear()
    assert "redirects more than 5 times" in refusal(f"{site.root}/loop")
    assert len(site.requests) == 6


@pytest.mark.parametrize(
    "location, reason",
    [
        *(
            (f"http://{host}:PORT/secret", "no public address")
            for host in ("127.0.0.1", "2130706433", "[::1]", "localhost")
        ),
        *((f"//{host}/secret", "no public address") for host in ("169.254.169.254", "10.0.0.1")),
        ("file:///etc/passwd", "neither an http nor"),
        ("ftp://pictures.test/secret", "neither an http nor"),
        ("data:text/plain,secret", "neither an http nor"),
        ("http://user:pass@pictures.test:PORT/secret", "user name or password"),
        ("/secret now", "space or a control character"),
        ("/secret\tnow", "space or a control character"),
        ("/secret\r\n now", "space or a control character"),
        ("http://[::1/secret", "no valid URL"),
        ("", "answers 302 Elsewhere"),
    ],
)
def test_redirects_are_checked_like_any_url(site, network, location, reason):
    site.pages = {"/": redirect(location.replace("PORT", str(site.port))), "/secret": reply(b"secret")}
    text = refusal(f"http://pictures.test:{site.port}/")
    assert reason in text and ":pass" not in text
    assert network.dialled == [PUBLIC] and [path for path, _ in site.requests] == ["/"]


def test_an_error_after_a_redirect_names_both_urls(site, private_allowed):
    site.pages["/old"] = redirect("/new")
    assert refusal(f"{site.root}/old").startswith(
        f"{site.root}/old leads to {site.root}/new, which answers 404 Not Found"
    )


# --- https ------------------------------------------------------------------------------------------------------------


def test_https_to_the_checked_address_with_the_name_of_the_host(site, network, monkeypatch):
    site.speak_tls(monkeypatch)
    site.pages["/"] = reply(b"over TLS")
    assert get(f"https://pictures.test:{site.port}/") == b"over TLS"
    assert get(f"https://pictures.test.:{site.port}/") == b"over TLS"  # certificates know no final dot
    network.names["other.test"] = [PUBLIC]
    text = refusal(f"https://other.test:{site.port}/")
    assert "certificate" in text and "other.test" in text
    assert network.dialled == [PUBLIC] * 3 and len(site.requests) == 2


def test_https_with_a_certificate_that_nobody_signed(site, monkeypatch):
    site.speak_tls(monkeypatch, trusted=False)
    site.pages["/"] = reply(b"secret")
    assert "has a certificate that cannot be trusted" in refusal(f"https://pictures.test:{site.port}/")


def test_https_is_not_left_for_http(site, network, monkeypatch):
    site.speak_tls(monkeypatch)
    site.pages = {"/": redirect("http://pictures.test/"), "/on": redirect("/end"), "/end": reply(b"end")}
    assert "redirects from https to plain http (http://pictures.test/)" in refusal(
        f"https://pictures.test:{site.port}/"
    )
    assert network.dialled == [PUBLIC]
    assert get(f"https://pictures.test:{site.port}/on") == b"end"


@pytest.mark.parametrize("raw", [[b"HTTP/1.1 400 Bad Request\r\n\r\n"], [], [b"\x15\x03\x03\x00\x02\x02\x28"]])
def test_https_on_a_port_that_speaks_none(site, private_allowed, raw):
    site.raw = raw
    assert "cannot be fetched (" in refusal(site.root.replace("http", "https"))


# --- limits -----------------------------------------------------------------------------------------------------------


def test_size_limit(site, private_allowed):
    site.pages["/exact"] = reply(b"x" * 1000)
    site.pages["/promised"] = reply(b"", Content_Length=1001)
    site.pages["/unpromised"] = reply(b"x" * 1001, Content_Length=None)
    site.pages["/lied"] = reply(b"x" * 5000, Content_Length=-1)
    assert get(f"{site.root}/exact", max_bytes=1000) == b"x" * 1000
    assert "has 1,001 bytes, more than the limit of 1,000" in refusal(f"{site.root}/promised", max_bytes=1000)
    assert "more bytes than the limit of 1,000" in refusal(f"{site.root}/unpromised", max_bytes=1000)
    assert "more bytes than the limit of 1,000" in refusal(f"{site.root}/lied", max_bytes=1000)


@pytest.mark.parametrize(
    "start",
    [
        reply(Content_Length=None),
        reply(Content_Length="many"),
        [*reply(Content_Length=None, Transfer_Encoding="chunked"), b"ffffffffffffffff\r\n"],
        [*reply(Content_Length=None, Transfer_Encoding="chunked"), b"-1\r\n"],
        [*reply(Content_Length=5, Transfer_Encoding="chunked"), b"10000000\r\n"],
    ],
)
def test_endless_bodies_end_at_the_size_limit_and_fill_no_memory(site, private_allowed, start):
    site.pages["/endless"] = lambda: itertools.chain(start, itertools.repeat(bytes(2**16), 1000))
    tracemalloc.start()
    try:
        assert "more bytes than the limit" in refusal(f"{site.root}/endless")
        assert tracemalloc.get_traced_memory()[1] < 10 * MEGABYTE  # of the 66 MB that the server would send
    finally:
        tracemalloc.stop()


CHUNKED = b"".join(reply(Content_Length=None, Transfer_Encoding="chunked"))


@pytest.mark.parametrize(
    "start, drops, end",
    [
        (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),  # a status line letter by letter
        (b"HTTP/1.1 200 OK\r\n", [b"X: 1\r\n"] * 40, b"Content-Length: 0\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", [b"HTTP/1.1 100 Continue\r\n\r\n"] * 40, b"".join(reply())),
        (b"".join(reply(Content_Length=40)), [b"x"] * 40, b""),
        (b"".join(reply(Content_Length=None)), [b"x"] * 40, b""),
        (CHUNKED, [b"1\r\nx\r\n"] * 40, b"0\r\n\r\n"),
        (CHUNKED, b"0" * 40, b"\r\n\r\n"),  # the size of a chunk, digit by digit
        (CHUNKED + b"0\r\n", [b"X: 1\r\n"] * 40, b"\r\n"),  # headers after the end
        (b"".join(redirect("/fast")), [b"x"] * 40, b""),
    ],
)
def test_dripping_servers_do_not_stretch_the_time(site, private_allowed, start, drops, end):
    drops = [drops[i : i + 1] for i in range(len(drops))] if isinstance(drops, bytes) else drops
    site.pages["/slow"] = site.slowly(start, *drops, end)
    site.pages["/fast"] = reply(b"fast")
    if b"Location" in start:  # nothing of a redirect's body is waited for
        assert get(f"{site.root}/slow", seconds=1.5) == b"fast"
    else:
        assert "did not arrive within 0.3 seconds" in refusal(f"{site.root}/slow", seconds=0.3)


def test_the_time_limit_is_one_for_all_redirects(site, private_allowed):
    def slow(location):
        return site.slowly(b"", b"", b"", *redirect(location))  # 0.2 s or so

    site.pages = {f"/{i}": slow(f"/{i + 1}") for i in range(5)} | {"/5": reply(b"end")}
    assert "did not arrive within 0.3 seconds" in refusal(f"{site.root}/0", seconds=0.3)


def test_silent_servers(site, private_allowed):
    def silence():
        site.stop.wait(3)
        return []

    site.raw = silence
    assert "did not arrive within 0.3 seconds" in refusal(site.root, seconds=0.3)
    assert "did not arrive within 0.3 seconds" in refusal(site.root.replace("http", "https"), seconds=0.3)


def test_a_dripping_tls_handshake(site, private_allowed):
    site.raw = site.slowly(b"\x16\x03\x03\x40\x00", *[b"\0"] * 40)
    assert "did not arrive within 0.3 seconds" in refusal(site.root.replace("http", "https"), seconds=0.3)


def test_a_name_server_that_takes_its_time(network):
    network.names["slow.test"] = lambda: time.sleep(1) or [PUBLIC]
    assert "did not arrive within 0.2 seconds" in refusal("http://slow.test/", seconds=0.2)
    assert network.dialled == []


@pytest.mark.parametrize("seconds", [0, -1])
def test_no_time_at_all(network, seconds):
    assert f"did not arrive within {seconds} seconds" in refusal("http://pictures.test/", seconds=seconds)
    assert network.looked_up == []


# --- answers that are none --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oh\x1b[31m", "204 No Content", "206 Part", "304 Same", "403"])
def test_any_status_but_200_is_told(site, private_allowed, status):
    site.pages["/a"] = reply(b"<html>", status)
    assert f"answers {status[:6]}" in refusal(f"{site.root}/a")


@pytest.mark.parametrize(
    "header",
    [{"Content_Encoding": "gzip"}, {"Content_Encoding": "identity, br"}, {"Transfer_Encoding": "gzip, chunked"}],
)
def test_packed_bodies_are_refused(site, private_allowed, header):
    site.pages["/a"] = reply(b"\x1f\x8b", **header)
    assert "comes packed" in refusal(f"{site.root}/a")
    site.pages["/b"] = reply(b"plain", Content_Encoding="Identity")
    assert get(f"{site.root}/b") == b"plain"


@pytest.mark.parametrize(
    "pieces, reason",
    [
        (reply(b"hello", Content_Length=9), "broke off after 5 of 9 bytes"),
        (reply(b"", Content_Length=9), "broke off after 0 of 9 bytes"),
        ([CHUNKED, b"9\r\nhello"], "broke off before its end"),
        ([CHUNKED, b"5\r\nhello\r\n"], "broke off before its end"),
        ([CHUNKED, b"five\r\nhello\r\n"], "broke off before its end"),
        ([CHUNKED, b"5" * 70_000], "not proper HTTP"),
        ([], "cannot be fetched"),
        ([b"\x89PNG\r\n\x1a\n"], "not proper HTTP"),
        ([b"SSH-2.0-OpenSSH_9.0\r\n" * 10_000], "not proper HTTP"),
        ([b"HTTP/1.1 2OO OK\r\n\r\n"], "not proper HTTP"),
        ([b"HTTP/1.1 200 OK\r\n", *[b"X-Header: flood\r\n"] * 200], "not proper HTTP (got more than 100 headers)"),
        ([b"HTTP/1.1 200 OK\r\nX: ", *[b"x" * 1000] * 1000], "not proper HTTP"),
        ([b"x" * 10**6], "not proper HTTP"),
    ],
)
def test_answers_that_are_none(site, private_allowed, pieces, reason):
    site.pages["/a"] = pieces
    assert reason in refusal(f"{site.root}/a")


def test_damaged_answers_give_a_file_or_a_sentence(site, private_allowed):
    whole = b"".join(reply(Content_Length=None, Transfer_Encoding="chunked")) + b"5\r\nhello\r\n0\r\nX: 1\r\n\r\n"
    chance, files = random.Random(0), 0
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(damaged))
            damaged[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        site.pages["/a"] = [bytes(damaged)[: chance.choice((None, chance.randrange(len(damaged))))]]
        try:
            files += len(get(f"{site.root}/a", max_bytes=1000)) >= 0
        except ValueError:
            refusal(f"{site.root}/a", max_bytes=1000)
    assert 0 < files < 100


def test_nothing_stays_open_after_a_failure(site, private_allowed, monkeypatch):
    files, make = [], tempfile.SpooledTemporaryFile
    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda **options: files.append(make(**options)) or files[-1])
    site.pages["/a"] = reply(b"hello", Content_Length=9)
    refusal(f"{site.root}/a")
    assert len(files) == 1 and files[0].closed
