"""A picture or clip from the web, fetched so that no URL can do harm: `open_url`.

URLs come in with messages that others wrote, and a careless fetch lets them knock at the doors of this machine and
its network (a router, a database, the cloud's http://169.254.169.254 with its keys). So every host is looked up once,
all its addresses have to be public, and the connection goes to exactly the address that was checked: a second look-up
might answer differently. Each redirect starts the same checks anew. Time and size have limits that no server can
stretch, dripping one byte a second or sending for ever.

Proxies named in the environment (HTTP_PROXY, …) are not used: a proxy looks hosts up by itself, out of our sight.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import queue
import re
import socket
import ssl
import tempfile
import threading
import time
from typing import BinaryIO
from urllib.parse import quote, urljoin, urlsplit

ALLOW_PRIVATE = os.environ.get("QWEN2VL_ALLOW_PRIVATE_URLS") == "1"  # also set by --allow-private-urls
PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 5
MAX_URL_CHARS = 8192
MEMORY_BYTES = 8 * 2**20  # what is larger goes to disk
PIECE_BYTES = 64 * 2**10  # read at a time
REDIRECTS = (301, 302, 303, 307, 308)
# Spaces and control characters could end the request line early; half characters (surrogates) cannot be encoded.
FORBIDDEN = re.compile(r"[\s\x00-\x20\x7f-\x9f\ud800-\udfff]")
# Addresses that Python calls public, or did in some version, and that lead into a network all the same.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "168.63.129.16/32",  # Azure's own services, from within its machines
        "100.100.100.200/32",  # Alibaba's
        "192.0.0.0/24",  # between protocols (RFC 6890), a few of it public by name only
        "192.88.99.0/24",  # the old 6to4 relays (RFC 7526)
        "2001::/23",  # between protocols, among them Teredo tunnels (RFC 6890)
        "3fff::/20",  # for examples in books (RFC 9637)
        "5f00::/16",  # segment routing (RFC 9602)
    )
)
ISATAP = (0x00005EFE, 0x02005EFE)  # in an IPv6 address, before an IPv4 address to which a tunnel leads (RFC 5214)
SAVE = "save it to a file and pass the path"


class Refused(Exception):
    """Why a URL is not fetched, as the end of the sentence "http://… ", and the way out."""

    def __init__(self, reason: str, way_out: str = SAVE):
        self.reason = reason
        self.way_out = way_out


def open_url(url: str, max_bytes: int, seconds: float) -> BinaryIO:
    """Fetch an http or https URL → a temporary file (in memory while it is small), open for reading at its start.

    The file has at most `max_bytes`, and all there is to do (looking hosts up, redirects, the download) takes at most
    `seconds`. Raises ValueError, in one sentence, if that is not to be had or if the URL leads to a host that is not
    public while `ALLOW_PRIVATE` is False.
    """
    deadline = time.monotonic() + seconds
    file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)
    here = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            location = fetch(here, file, max_bytes, deadline)
            if location is None:
                file.seek(0)
                return file
            here = follow(here, location)
        here = url
        raise Refused(f"redirects more than {MAX_REDIRECTS} times")
    except Exception as error:  # the parsers of http.client raise more than they say
        file.close()
        refused = error if isinstance(error, Refused) else Refused(explain(error, seconds))
        subject = shorten(url) if here == url else f"{shorten(url)} leads to {shorten(here)}, which"
        raise ValueError(f"{subject} {refused.reason}; {refused.way_out}.") from None


def fetch(url: str, file: BinaryIO, max_bytes: int, deadline: float) -> str | None:
    """One request. The body goes into `file`; a redirect is not followed, but its location returned."""
    scheme, host, port, target = parse(url)
    with connect(resolve(host, port, deadline), deadline) as plain, secure(plain, scheme, host, deadline) as sock:
        name = f"[{host}]" if ":" in host else host
        name += "" if port == PORTS[scheme] else f":{port}"
        lines = (f"GET {target} HTTP/1.1", f"Host: {name}", "User-Agent: qwen2vl-mini", "Accept: */*")
        # packed bodies are not asked for: a few kilobytes of gzip can hold gigabytes
        lines += ("Accept-Encoding: identity", "Connection: close", "", "")
        sock.settimeout(time_left(deadline))
        sock.sendall("\r\n".join(lines).encode("ascii"))
        with http.client.HTTPResponse(TimedReader(sock, deadline)) as response:
            response.begin()
            if response.status in REDIRECTS and (location := response.headers.get("Location")):
                return location
            save_body(response, file, max_bytes)
    return None


def save_body(response: http.client.HTTPResponse, file: BinaryIO, max_bytes: int) -> None:
    if response.status != 200:
        raise Refused(f"answers {response.status} {shorten(response.reason, 40)}".rstrip(), f"check it, or {SAVE}")
    for header, plain in ("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked"):
        value = response.getheader(header, plain)
        if value.strip().lower() not in (plain, ""):
            raise Refused(f"comes packed ({header}: {shorten(value, 40)}), which is not read")
    promised = response.length  # bytes; None where the server does not say
    size = 0
    if promised is not None and promised > max_bytes:
        raise Refused(f"has {promised:,} bytes, more than the limit of {max_bytes:,}", f"make it smaller, or {SAVE}")
    # read1, for read would collect all of a chunk whose size is given as -1, however long
    while piece := response.read1(PIECE_BYTES if promised is None else min(PIECE_BYTES, promised - size)):
        size += len(piece)
        if size > max_bytes:
            raise Refused(f"has more bytes than the limit of {max_bytes:,}", f"make it smaller, or {SAVE}")
        file.write(piece)
    if promised is not None and size < promised:
        raise Refused(f"broke off after {size:,} of {promised:,} bytes", f"try again, or {SAVE}")


# ── URLs ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def parse(url: str) -> tuple[str, str, int, str]:
    """URL → scheme, host (ASCII, an IPv6 address without brackets), port, and path with query, quoted."""
    if len(url) > MAX_URL_CHARS:
        raise Refused(f"has {len(url):,} characters, more than the limit of {MAX_URL_CHARS:,}")
    if FORBIDDEN.search(url):
        raise Refused("holds a space or a control character, which no URL may", "write %20 for a space")
    try:
        parts = urlsplit(url)
        scheme = parts.scheme
        host = parts.hostname or ""
        port = parts.port
    except ValueError:  # a bracket that is not closed, a port beyond 65535
        raise Refused("is no valid URL", "check how its host and port are written") from None
    if scheme not in PORTS:
        raise Refused("is neither an http nor an https URL")
    if "@" in parts.netloc:
        raise Refused("holds a user name or password, which are not sent")
    try:
        if "[" in parts.netloc:
            if not re.fullmatch(r"\[[^\]]*\](:[0-9]*)?", parts.netloc):  # urlsplit overlooks [::1]more
                raise ValueError
            host = str(ipaddress.IPv6Address(host))
        elif host:
            if len(host) > 254:  # more than a name may have, and the IDNA code takes its time over long ones
                raise ValueError
            host = host.encode("idna").decode("ascii").removesuffix(".")
            if not re.fullmatch(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*", host):
                raise ValueError
    except ValueError:
        raise Refused("names no valid host", "check how it is written") from None
    if not host:
        raise Refused("names no host", "write http://host/path")
    target = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")  # what is quoted already stays so
    if parts.query:
        target += "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~?")
    return scheme, host, PORTS[scheme] if port is None else port, target


def follow(url: str, location: str) -> str:
    """Where a redirect leads; whether one may go there is for the next `parse` and `resolve` to say."""
    # http.client reads headers as Latin-1, servers that do not quote write UTF-8
    location = location.encode("latin-1").decode("utf-8", errors="replace")
    if FORBIDDEN.search(location):  # looked at before urljoin, which drops some without a word
        raise Refused("redirects to an address with a space or a control character")
    try:
        there = urljoin(url, location)
        downgrade = urlsplit(url).scheme == "https" and urlsplit(there).scheme == "http"
    except ValueError:
        raise Refused(f"redirects to {shorten(location)}, which is no valid URL") from None
    if downgrade:
        raise Refused(f"redirects from https to plain http ({shorten(there)})")
    return there


def shorten(text: str, longest: int = 120) -> str:
    """A URL (or what a server wrote) as an error message can show it: one bounded line, without passwords."""
    text = re.sub(r"(//)[^/?#]*@", r"\1…@", text[: 2 * MAX_URL_CHARS])
    text = "".join(c if c.isprintable() else "?" for c in text) or '""'
    return text if len(text) <= longest else text[: longest - 20] + "…" + text[-19:]


# ── Connections ───────────────────────────────────────────────────────────────────────────────────────────────────


def resolve(host: str, port: int, deadline: float) -> list[tuple]:
    """The addresses of a host, as socket.getaddrinfo gives them; all of them public, unless `ALLOW_PRIVATE`."""
    wait = time_left(deadline)
    answers = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()  # in a thread, as the system's resolver takes no time limit
    try:
        found = answers.get(timeout=wait)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(found, Exception):
        raise Refused(f"names a host that is not found ({shorten(host)})", "check its name and the network connection")
    for *_, address in found:
        if not ALLOW_PRIVATE and not is_public(address[0]):
            way_out = f"{SAVE}, or allow such hosts with --allow-private-urls"
            raise Refused(f"is at {address[0]}, which is no public address", way_out)
    return found


def is_public(address: str) -> bool:
    """Whether an address, as numbers, belongs to the public internet, and the IPv4 address inside it too."""
    ip = ipaddress.ip_address(address.partition("%")[0])  # without the network card of fe80::1%eth0
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    if ip.version == 4:
        return ip.is_global and not ip.is_multicast
    inside = ip.ipv4_mapped or ip.sixtofour
    is_nat64 = ip in ipaddress.ip_network("64:ff9b::/96")  # how a network without IPv4 writes IPv4 addresses
    last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if (int(ip) >> 32) & 0xFFFFFFFF in ISATAP and not is_public(str(last)):
        return False
    if is_nat64:
        inside = last
    # 2000::/3 is all that has been handed out to the public; around it lie local, mapped and reserved ranges
    return is_public(str(inside)) if inside else ip.is_global and ip in ipaddress.ip_network("2000::/3")


def connect(found: list[tuple], deadline: float) -> socket.socket:
    """A connection to the first of the addresses that answers."""
    failure: Exception = OSError("no address")
    for number, (family, kind, protocol, _, address) in enumerate(found):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(time_left(deadline) / (len(found) - number))  # a dead one leaves time for the others
            sock.connect(address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def secure(sock: socket.socket, scheme: str, host: str, deadline: float) -> socket.socket:
    """The socket itself, or, for https, TLS around it with a certificate checked to be valid and the host's."""
    if scheme == "http":
        return sock
    sock.settimeout(time_left(deadline))
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)


class TimedReader(io.RawIOBase):
    """What HTTPResponse takes for a socket: all its reads, however many and small, have to end by the deadline."""

    def __init__(self, sock: socket.socket, deadline: float):
        self.sock = sock
        self.deadline = deadline

    def makefile(self, mode: str) -> BinaryIO:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self.sock.settimeout(time_left(self.deadline))
        return self.sock.recv_into(buffer)


def time_left(deadline: float) -> float:
    """Seconds, more than none: a socket would take 0 for "do not wait" and wait no more."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def explain(error: Exception, seconds: float) -> str:
    """What Python raised on the way → the end of a sentence."""
    if isinstance(error, TimeoutError):
        return f"did not arrive within {seconds:g} seconds"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"has a certificate that cannot be trusted ({shorten(error.verify_message).rstrip('.')})"
    if isinstance(error, http.client.IncompleteRead):
        return "broke off before its end"
    text = shorten(getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, OSError):
        return f"is on a server whose answer is not proper HTTP ({text})"
    return f"cannot be fetched ({text})"
