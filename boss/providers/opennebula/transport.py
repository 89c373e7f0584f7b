"""HTTP transport to an OpenNebula: one request per call, within a time limit, through a proxy and TLS. Describes a
missing answer in one sentence.

The main question is whether the order arrived: `TryLater` means certainly not, `Unanswered` means unknown.
"""

from __future__ import annotations

import time
import xmlrpc.client
from typing import Any
from urllib.parse import urlsplit

import msgspec
import requests
from urllib3.exceptions import HTTPError, NameResolutionError, NewConnectionError, ReadTimeoutError

from boss.providers.provider import CredentialsWrong, TryLater, Unanswered

CONNECT_S = 5.0
ANSWER_S = 30.0
"""For a whole answer: the largest, 2,000 VMs, takes a second or two."""
MAX_ANSWER_BYTES = 256_000_000
PIECE_BYTES = 65_536
TOKEN_S = 3600.0


class Endpoint(msgspec.Struct, frozen=True):
    """The cloud's address and the user. `ca`: path of the authority's certificate, empty for the system's; `proxy`:
    URL, empty for the environment's; `token_s`: lifetime of the tokens used in place of the password, 0 for none."""

    url: str
    user: str
    password: str
    ca: str = ""
    proxy: str = ""
    connect_s: float = CONNECT_S
    answer_s: float = ANSWER_S
    token_s: float = TOKEN_S

    @property
    def name(self) -> str:
        """The cloud, for messages."""
        return f"the cloud at {self.url}"


class Transport(xmlrpc.client.Transport):
    """Uses a new connection for each request: with a kept one that the server had closed it would be unknown whether
    the order arrived. Enforces time limits that pyone's own `timeout=` does not."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._endpoint = endpoint

    def request(self, host: Any, handler: str, request_body: Any, verbose: bool = False) -> Any:
        endpoint = self._endpoint
        deadline = time.monotonic() + endpoint.answer_s
        with requests.Session() as session:
            if endpoint.proxy:
                session.proxies = {"http": endpoint.proxy, "https": endpoint.proxy}
                session.trust_env = False
            answer = session.post(
                endpoint.url,
                data=request_body,
                headers={"Content-Type": "text/xml", "Connection": "close"},
                timeout=(endpoint.connect_s, endpoint.answer_s),
                verify=endpoint.ca or True,
                allow_redirects=False,
                stream=True,
            )
            with answer:
                if answer.status_code != 200:
                    place = str(answer.headers.get("Location", ""))
                    raise xmlrpc.client.ProtocolError(endpoint.url, answer.status_code, place, {})
                try:
                    return self._parse(answer.raw, deadline)
                except ReadTimeoutError as error:
                    raise requests.exceptions.ReadTimeout(error) from error
                except HTTPError as error:
                    raise requests.exceptions.ConnectionError(str(error)) from error

    def _parse(self, body: Any, deadline: float) -> Any:
        parser, unmarshaller = self.getparser()
        size = 0
        # Read what has arrived, not a whole chunk: a slow answer must not exceed its time limit.
        while piece := body.read1(PIECE_BYTES, decode_content=True):
            size += len(piece)
            if time.monotonic() > deadline:
                raise requests.exceptions.ReadTimeout("the answer takes too long")
            if size > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
            parser.feed(piece)
        parser.close()
        return unmarshaller.close()


# --- sentences ---------------------------------------------------------------------------------


def refused_by_http(endpoint: Endpoint, error: xmlrpc.client.ProtocolError) -> Exception:
    """The error for an answer other than 200."""
    code, look = error.errcode, "check OPENNEBULA_URL, which often is http://HOST:2633/RPC2"
    if code == 404:
        return CredentialsWrong(f"there is no OpenNebula at {endpoint.url} (HTTP 404); {look}")
    if code in (401, 403, 407):
        whose = "the proxy" if code == 407 else "a server before it"
        return CredentialsWrong(
            f"{endpoint.name}: {whose} refuses access (HTTP {code}); check OPENNEBULA_PROXY and _URL"
        )
    if 300 <= code < 400:
        return CredentialsWrong(f"{endpoint.name} redirects to {error.errmsg or 'nowhere'} (HTTP {code}); {look}")
    return Unanswered(f"{endpoint.name} is in trouble (HTTP {code}); the boss retries")


def no_way(endpoint: Endpoint, error: requests.exceptions.RequestException) -> Exception:
    """The error for a missing answer."""
    if isinstance(error, requests.exceptions.SSLError):
        return _tls(endpoint, str(error))
    if isinstance(error, requests.exceptions.ProxyError):
        return TryLater(
            f"the proxy {_without_password(endpoint.proxy) or 'of the environment'} on the way to {endpoint.name} "
            "cannot be used; check OPENNEBULA_PROXY"
        )
    if isinstance(error, ValueError):  # requests' errors about addresses are ValueErrors
        return CredentialsWrong(f"{endpoint.name} is not an address; set OPENNEBULA_URL, e.g. http://HOST:2633/RPC2")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return TryLater(f"{endpoint.name} cannot be reached: no answer within {endpoint.connect_s:g} s; is it up?")
    if isinstance(error, requests.exceptions.Timeout):
        return Unanswered(f"{endpoint.name} did not answer within {endpoint.answer_s:g} s; the boss retries")
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    if isinstance(reason, NameResolutionError):
        host = urlsplit(endpoint.url).hostname
        return TryLater(f"{endpoint.name} cannot be reached: the name {host} is not known; check OPENNEBULA_URL")
    if isinstance(reason, NewConnectionError):
        why = str(reason).rpartition(": ")[2]
        return TryLater(f"{endpoint.name} cannot be reached: {why}; is it up, and OPENNEBULA_URL right?")
    return Unanswered(f"{endpoint.name} closed the connection before it answered; the boss retries")


def _tls(endpoint: Endpoint, text: str) -> Exception:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        why = text.partition("certificate verify failed: ")[2].partition(" (_ssl")[0] or "not trusted"
        return CredentialsWrong(f"the certificate of {endpoint.name} is not valid: {why}; check OPENNEBULA_CA")
    if "WRONG_VERSION_NUMBER" in text or "UNKNOWN_PROTOCOL" in text:
        return CredentialsWrong(
            f"{endpoint.name} does not use TLS there; use http:// if it has none, or check OPENNEBULA_URL"
        )
    if "NO_CERTIFICATE" in text or "X509" in text or "PEM" in text:
        return CredentialsWrong(f"OPENNEBULA_CA = {endpoint.ca} holds no certificate; it must be a PEM file")
    return TryLater(f"{endpoint.name} cannot be reached: the TLS handshake failed; is it up?")


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    return url if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
