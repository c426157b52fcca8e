"""Free ports on loopback that stay reserved until the process they are meant for listens on them."""

from __future__ import annotations

import socket


def reserve_port(port: int = 0) -> socket.socket:
    """Reserves a loopback port (any free one for 0). Nobody who asks the system for a free port gets it meanwhile.

    The returned socket is bound with SO_REUSEADDR and does not listen, so Linux lets a process that also sets that
    option listen on the same port. Close the socket to give the port back.

    Raises:
        OSError: another process listens on the port.
    """
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        holder.bind(("127.0.0.1", port))
    except OSError:
        holder.close()
        raise
    return holder
