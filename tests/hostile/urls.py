"""http(s) addresses: hostile servers, private hosts in many spellings, and URLs that are none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from qwen2vl_io import sources
from qwen2vl_io import urls as fetcher
from tests.hostile.cases import Case
from tests.hostile.server import server
from tests.hostile.ways_in import NO_PICTURE, NO_VIDEO, given, see_clip, see_picture

REFUSALS = {  # page of the server: what the refusal of it says
    "text.png": NO_PICTURE,
    "html.png": NO_PICTURE,
    "empty.png": "empty",
    "missing.png": "404 Not Found",
    "endless": "more bytes than the limit|did not arrive",
    "endless-chunks": "more bytes than the limit|did not",
    "endless-chunk": "more bytes than the limit|did not arrive",
    "bad-chunk": "HTTP|broke off|chunk",
    "negative-chunk": "more bytes than the limit|broke off|HTTP|did not arrive",
    "drip": "did not arrive within 1 second",
    "drip-head": "did not arrive within 1 second|HTTP",
    "drip-status": "did not arrive within 1 second",
    "silent": "did not arrive within 1 second",
    "short": "broke off after",
    "cut": "cut off or damaged",
    "huge": "more than the limit",
    "huge-digits": "more than the limit|HTTP|cannot be fetched",
    "negative": "HTTP|length|damaged|bytes",
    "two-lengths": "length|picture|HTTP|damaged",
    "gzip": "comes packed",
    "gone": "410 Gone",
    "error": "500",
    "teapot": "418",
    "continue": "HTTP|did not arrive",
    "partial": "206",
    "no-http": "not proper HTTP",
    "nothing": "HTTP|closed|broke off|cannot be fetched",
    "head-bomb": "HTTP|headers",
    "line-bomb": "HTTP|line",
    "loop": "redirects more than",
    "long-way": "redirect|characters",
    "to-loopback": "127.0.0.1, which is no pub",
    "to-localhost": "no public address",
    "to-decimal": "no public address",
    "to-ipv6": "no public address",
    "to-cloud": "169.254.169.254, which is no public",
    "to-file": "neither an http nor an https",
    "to-ftp": "neither an http nor an https",
    "to-data": "neither an http nor an https",
    "to-break": "control character",
    "to-nothing": "302",
    "to-bracket": "no valid URL",
}

PRIVATE_HOSTS = (
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0x7f.1",
    "0",
    "0.0.0.0",
    "localhost",
    "LOCALHOST",
    "localhost.",
    "127.0.0.1.",
    "１２７.０.０.１",
    "127。0。0。1",
    "ⓛocalhost",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "[fe80::1]",
    "[fd00::1]",
    "private.test",
    "two-faced.test",
    "mapped.test",
    "cloud.test",
    "224.0.0.1",
    "255.255.255.255",
)

WRONG_URLS = {  # name: URL, what the refusal says
    "a name and password": ("http://user:secret@public.test/a.png", "user name or password"),
    "a host behind an @": ("http://public.test@127.0.0.1/a.png", "user name or password"),
    "a backslash": ("http://public.test\\@127.0.0.1/a.png", "host|password|URL"),
    "no host": ("http:///a.png", "names no host"),
    "no slashes": ("http:public.test/a.png", "host"),
    "a port of 99999": ("http://public.test:99999/a.png", "no valid URL"),
    "a port of letters": ("http://public.test:abc/a.png", "no valid URL"),
    "a port of 0": ("http://public.test:-1/a.png", "no valid URL"),
    "a space": ("http://public.test/a b.png", "space"),
    "a line break": ("http://public.test/a\r\nHost: x", "space or a control"),
    "a null character": ("http://public.test/\0", "control character"),
    "half a character": ("http://public.test/\ud800", "control character|character"),
    "100,000 letters": ("http://public.test/" + "a" * 100_000, "characters"),
    "a host of 300 letters": ("http://" + "a" * 300 + ".test/", "no valid host"),
    "a host of dots": ("http://..../a.png", "host"),
    "an open bracket": ("http://[::1/a.png", "no valid URL"),
    "a host that is not there": ("http://nowhere.test/a.png", "not found"),
    "stars": ("http://*.test/a.png", "no valid host"),
    "an invisible letter": ("http://pub\u200blic.test/missing", "host|404"),
}


def urls() -> Iterator[Case]:
    yield from pages()
    for host in PRIVATE_HOSTS:
        yield url(f"host {host}", f"http://{host}:PORT/a.png", "no public address|no valid host|not found")
    for name, (address, says) in WRONG_URLS.items():
        yield url(name, address, says)


def pages() -> Iterator[Case]:
    for page, says in REFUSALS.items():
        expect = "either" if page in ("negative", "two-lengths") else "refused"
        yield url(f"a server's /{page}", f"http://public.test/{page}", says, expect)
    for page in ("endless", "drip", "text.png", "to-loopback", "short"):
        says = NO_VIDEO if page == "text.png" else REFUSALS[page]
        yield url(f"a clip from /{page}", f"http://public.test/{page}", says, use=see_clip)

    yield url("a sound picture", "http://public.test/a.png", "", "answered")
    yield url("a sound clip", "HTTP://public.test/a.mp4", "", "answered", see_clip)
    yield url("a sound redirect", "http://public.test/to-picture", "", "answered")
    yield url("more bytes than promised", "http://public.test/long", "", "answered")
    yield url("this machine, if allowed", "http://127.0.0.1:PORT/a.png", "", "answered", private=True)


def url(
    name: str, address: str, says: str, expect: str = "refused", use: Callable = see_picture, private: bool = False
) -> Case:
    return Case("URLs", name, given(address), partial(see_url, use=use, allow_private=private), says, expect)


def see_url(url: str, use: Callable, allow_private: bool = False) -> str:
    """Fetch and see a picture or clip, with one second for the download instead of 30 and more."""
    url = url.replace("PORT", str(server()))
    usual = sources.IMAGE_SECONDS, sources.VIDEO_SECONDS, fetcher.ALLOW_PRIVATE
    sources.IMAGE_SECONDS = sources.VIDEO_SECONDS = 1
    fetcher.ALLOW_PRIVATE = allow_private
    try:
        return use(url)
    finally:
        sources.IMAGE_SECONDS, sources.VIDEO_SECONDS, fetcher.ALLOW_PRIVATE = usual
