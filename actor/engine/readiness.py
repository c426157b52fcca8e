"""Whether an SGLang server is up and ready, asked before there is a client for it, and the HTTP session for both."""

from __future__ import annotations

import aiohttp

_TIMEOUT_S = 5


def make_http_session() -> aiohttp.ClientSession:
    """An HTTP session for engines, to be made on the event loop that uses it.

    It drops an idle connection after 2 seconds. The server does so after 5, and a request that is sent into a
    connection at the moment in which the server closes it fails.
    """
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2))


async def is_ready(url: str, http: aiohttp.ClientSession) -> bool:
    """Whether an SGLang server at ``url`` is ready to generate. Waits at most 5 seconds for each of two routes.

    Before SGLang 0.5.20 there is no ``/ready``; there ``/model_info`` answers only once the server is ready.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with http.get(url + "/ready", timeout=timeout) as response:
            if response.status != 404:
                return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
    return await is_up(url, http)


async def is_up(url: str, http: aiohttp.ClientSession) -> bool:
    """Whether an SGLang server at ``url`` answers, though it may be paused. Waits at most 5 seconds."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with http.get(url + "/model_info", timeout=timeout) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


async def resume_if_paused(url: str, http: aiohttp.ClientSession) -> bool:
    """Has a server at ``url`` go on if it is paused. Returns whether it is ready now.

    A server that is starting ignores the request. Waits at most 15 seconds.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with http.post(url + "/continue_generation", json={}, timeout=timeout) as response:
            if response.status != 200:
                return False
    except (aiohttp.ClientError, TimeoutError):
        return False
    return await is_ready(url, http)
