"""Who is believed when he speaks for others: proxies, named by the program.

It is loaded where a program names some, and only there: ``ipaddress`` takes milliseconds.
"""

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from .errors import ConfigError

UNIX = "unix"  # whoever may open the UNIX socket


class Peers:
    """Addresses ("192.0.2.1"), networks ("10.0.0.0/8", "fd00::/8"), or "unix".

    ``peer in peers`` takes what ``accept()`` calls the other side. An IPv4 client of an IPv6
    socket is known by either address. Raises ConfigError, which names ``setting``.
    """

    def __init__(self, setting: str, peers: Sequence[str]) -> None:
        if isinstance(peers, str):
            raise ConfigError(f"{setting} must be a list of addresses, not the text {peers!r}")
        self._unix = UNIX in peers
        self._networks = []
        for peer in peers:
            if peer == UNIX:
                continue
            try:
                self._networks.append(ip_network(peer))
            except ValueError as error:
                raise ConfigError(
                    f"{setting} must have addresses, networks or {UNIX!r} in it, not {peer!r}: "
                    f"{error}"
                ) from error
        self._knows = lru_cache(1024)(self._look_up)

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, peer: Any) -> bool:
        if isinstance(peer, tuple) and peer and isinstance(peer[0], str):
            return self._knows(peer[0])
        return self._unix

    def _look_up(self, text: str) -> bool:
        try:
            address = ip_address(text)
        except ValueError:
            return False
        if isinstance(address, IPv6Address):
            # Of a link-local one the zone says where it came in, not who it is.
            plain = IPv6Address(int(address))
            address = address.ipv4_mapped or plain
        return any(
            address in network or (isinstance(network, IPv6Network) and _mapped(address) in network)
            for network in self._networks
        )


def _mapped(address: Any) -> Any:
    return IPv6Address(f"::ffff:{address}") if address.version == 4 else address
