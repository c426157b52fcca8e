"""Which hosts may be reached through the proxies of the environment: those on the internet, and none of our own."""

from __future__ import annotations

import ipaddress
import socket
from urllib.request import getproxies

# Endings of names that no public name has (RFC 6761, RFC 6762, RFC 8375, and what networks of companies use).
_INNER_ENDINGS = (
    ".localhost", ".local", ".internal", ".intranet", ".private", ".corp", ".home", ".lan", ".home.arpa", ".svc",
)  # fmt: skip


def may_use_proxy(host: str) -> bool:
    """Whether HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, if any is set, may lead to this host; NO_PROXY is not looked at.

    They may not where the host is on this machine or network, as a proxy for the internet does not lead there: an
    address that is loopback, private, link-local or shared (RFC 6598), a name without a dot or with an ending of inner
    names, and a name that stands here for such addresses alone. A name that means nothing here may be a public one,
    which only the proxy can look up.

    Blocks while the name is looked up, and only where there is a proxy.
    """
    proxies = getproxies()
    if not any(proxies.get(scheme) for scheme in ("http", "https", "all")):
        return False
    try:
        return _is_public(host)
    except ValueError:  # a name
        pass
    name = host.lower().rstrip(".")
    if "." not in name or name.endswith(_INNER_ENDINGS):
        return False
    try:
        found = {str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return True
    return any(_is_public(address) for address in found)


def _is_public(address: str) -> bool:
    """
    Raises:
        ValueError: it is no address.
    """
    found = ipaddress.ip_address(address.partition("%")[0])  # without the interface of a link-local one
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found.is_global if mapped is None else mapped.is_global
