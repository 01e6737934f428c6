"""A server of hostile pages on this machine, and a network that ends there."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import cache

from tests.hostile.material import clip, picture

PUBLIC = "93.184.216.34"  # connections to this address end at the server below
HOSTS = {
    "public.test": [PUBLIC],
    "private.test": ["10.0.0.1"],
    "cloud.test": ["169.254.169.254"],
    "two-faced.test": [PUBLIC, "127.0.0.1"],
    "localhost": ["127.0.0.1"],
    "mapped.test": ["::ffff:127.0.0.1"],
}

# --- the pages --------------------------------------------------------------------------------------------------------


def head(status: str = "200 OK", **headers) -> bytes:
    """The head of an answer; an underscore in a header's name becomes a hyphen."""
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1")


def forever(*first: bytes, piece: bytes = bytes(65536), pause: float = 0) -> Iterator[bytes]:
    """The pieces `first`, then the same piece again and again."""
    yield from first
    while True:
        yield piece
        time.sleep(pause)


def moved(location: str, status: str = "302 Found") -> Callable[[], Iterable[bytes]]:
    """A redirect."""
    return lambda: [head(status, Location=location, Content_Length=0)]


PAGES: dict[str, Callable[[], Iterable[bytes]]] = {  # path: what is sent, piece by piece
    "/a.png": lambda: [head(Content_Length=len(picture())), picture()],
    "/a.mp4": lambda: [head(Content_Length=len(clip())), clip()],
    "/text.png": lambda: [head(Content_Length=5), b"hello"],
    "/html.png": lambda: [head(Content_Type="image/png"), b"<html>" * 50],
    "/empty.png": lambda: [head(Content_Length=0)],
    "/endless": lambda: forever(head()),
    "/endless-chunks": lambda: forever(head(Transfer_Encoding="chunked"), piece=b"10000\r\n" + bytes(65536) + b"\r\n"),
    "/endless-chunk": lambda: forever(head(Transfer_Encoding="chunked"), b"7fffffffffffffff\r\n"),
    "/bad-chunk": lambda: [head(Transfer_Encoding="chunked"), b"zz\r\nhello"],
    "/negative-chunk": lambda: forever(head(Transfer_Encoding="chunked"), b"-1\r\n"),
    "/drip": lambda: forever(head(Content_Length=10**6), piece=b"x", pause=0.05),
    "/drip-head": lambda: forever(b"HTTP/1.1 200 OK\r\n", piece=b"X-a: b\r\n", pause=0.05),
    "/drip-status": lambda: forever(piece=b"H", pause=0.05),
    "/silent": lambda: forever(piece=b"", pause=0.1),
    "/short": lambda: [head(Content_Length=5000), picture()[:100]],
    "/long": lambda: [head(Content_Length=len(picture())), picture() + bytes(10**6)],
    "/cut": lambda: [head(Content_Length=len(picture()) // 2), picture()],
    "/huge": lambda: [head(Content_Length=10**15)],
    "/huge-digits": lambda: [head(Content_Length="9" * 5000)],
    "/negative": lambda: [head(Content_Length=-5), picture()],
    "/two-lengths": lambda: [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 900\r\n\r\n", picture()],
    "/gzip": lambda: [head(Content_Encoding="gzip"), zlib.compress(bytes(10**6))],
    "/gone": lambda: [head("410 Gone", Content_Length=0)],
    "/error": lambda: [head("500 " + "x" * 5000, Content_Length=0)],
    "/teapot": lambda: [b"HTTP/1.1 418 I\x1b[31m am\r\n\r\n"],
    "/continue": lambda: forever(piece=b"HTTP/1.1 100 Continue\r\n\r\n"),
    "/partial": lambda: [head("206 Partial Content", Content_Length=9), b"x" * 9],
    "/no-http": lambda: [b"SSH-2.0-OpenSSH_9.6\r\n"],
    "/nothing": lambda: [],
    "/head-bomb": lambda: forever(b"HTTP/1.1 200 OK\r\n", piece=b"X-a: b\r\n" * 1000),
    "/line-bomb": lambda: forever(b"HTTP/1.1 200 OK\r\nX-a: "),
    "/loop": moved("/loop"),
    "/long-way": moved("/long-way?" + "x" * 9000),
    "/to-loopback": moved("http://127.0.0.1/a.png"),
    "/to-localhost": moved("//localhost/a.png", "301 Moved"),
    "/to-decimal": moved("http://2130706433/a.png", "307 Temporary"),
    "/to-ipv6": moved("http://[::1]/a.png", "308 Permanent"),
    "/to-cloud": moved("http://cloud.test/latest/meta-data", "303 See Other"),
    "/to-file": moved("file:///etc/passwd"),
    "/to-ftp": moved("ftp://public.test/a.png"),
    "/to-data": moved("data:image/png;base64,AAAA"),
    "/to-break": moved("http://public.test/\x01a"),
    "/to-nothing": lambda: [head("302 Found", Content_Length=0)],
    "/to-bracket": moved("http://[::1"),
    "/to-picture": moved("/a.png"),
}

# --- the server -------------------------------------------------------------------------------------------------------


class Visit(socketserver.StreamRequestHandler):
    """One request: its head is read, then the page of its path is sent."""

    def handle(self):
        with contextlib.suppress(OSError):
            words = self.rfile.readline(10_000).split()
            while self.rfile.readline(10_000).strip():
                pass
            page = PAGES.get(words[1].decode() if len(words) > 1 else "", not_found)
            for piece in page():
                self.wfile.write(piece)


def not_found() -> list[bytes]:
    return [head("404 Not Found"), b"x"]


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, *_):
        pass  # a client that hangs up is what many pages are for


@cache
def server() -> int:
    """Start the server, close off the network; returns the port."""
    site = Server(("127.0.0.1", 0), Visit)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    port = site.server_address[1]
    close_off_the_network(port)
    return port


def close_off_the_network(port: int) -> None:
    """From now on, names are only looked up in HOSTS, and PUBLIC is the server on this port of this machine."""
    look_up = socket.getaddrinfo
    connect = socket.socket.connect

    def getaddrinfo(host, port, *args, **options):
        addresses = HOSTS.get(host, [host])
        options["flags"] = socket.AI_NUMERICHOST  # nothing is asked of the real network
        return [entry for address in addresses for entry in look_up(address, port, *args, **options)]

    def led_back(self, address):
        if address[0] == PUBLIC:
            address = ("127.0.0.1", port)
        elif address[0] not in ("127.0.0.1", "::1"):
            raise OSError("the tests have no network")
        return connect(self, address)

    socket.getaddrinfo = getaddrinfo
    socket.socket.connect = led_back
