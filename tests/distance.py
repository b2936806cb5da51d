"""Two hosts on one machine, with a delay between them: network namespaces, joined by a relay.

Each host has one TUN device. The relay is a process of its own, which runs this file: it
reads packets from either device, and writes each to the other when the delay has passed.
"""

import ctypes
import fcntl
import heapq
import os
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

_DEVICE = "/dev/net/tun"
_NAMESPACE = "/proc/thread-self/ns/net"
_CLONE_NEWNET = 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFNETMASK, _SIOCSIFFLAGS = 0x8916, 0x891C, 0x8914
_IFF_UP = 1
_PACKET = 1 << 16  # bytes; more than any that a device has

POSSIBLE = os.geteuid() == 0 and os.path.exists(_DEVICE)
NEEDS = f"two hosts need root, to make network namespaces, and {_DEVICE}"


@dataclass
class Host:
    """``address`` is the host's own; ``namespace`` and ``device`` are descriptors."""

    address: str
    namespace: int
    device: int

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets, threads and processes that this thread makes meanwhile are of this host."""
        with _back_again():
            _libc("setns", self.namespace, _CLONE_NEWNET)
            yield


@contextmanager
def two_hosts(delay: float) -> Iterator[tuple[Host, Host]]:
    """A packet from one reaches the other after ``delay`` seconds; a round trip is twice that."""
    with ExitStack() as stack:
        hosts = [stack.enter_context(_host(f"10.77.0.{number}")) for number in (1, 2)]
        devices = [host.device for host in hosts]
        command = [sys.executable, __file__, str(delay), *map(str, devices)]
        relay = stack.enter_context(
            subprocess.Popen(command, pass_fds=devices, stdout=subprocess.PIPE)
        )
        stack.callback(relay.kill)
        assert relay.stdout and relay.stdout.read(1), "the relay did not start"
        yield hosts[0], hosts[1]


@contextmanager
def _host(address: str) -> Iterator[Host]:
    with ExitStack() as stack:
        with _back_again():
            _libc("unshare", _CLONE_NEWNET)
            namespace = os.open(_NAMESPACE, os.O_RDONLY)
            stack.callback(os.close, namespace)
            device = os.open(_DEVICE, os.O_RDWR)
            stack.callback(os.close, device)
            fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", b"far", _IFF_TUN | _IFF_NO_PI))
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFNETMASK, "255.255.255.0")):
                    packed = struct.pack("H2x4s8x", socket.AF_INET, socket.inet_aton(value))
                    fcntl.ioctl(control, request, struct.pack("16s24s", b"far", packed))
                for name in (b"far", b"lo"):
                    fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name, _IFF_UP))
        yield Host(address, namespace, device)


@contextmanager
def _back_again() -> Iterator[None]:
    """Return this thread to the namespace that it is in now."""
    here = os.open(_NAMESPACE, os.O_RDONLY)
    try:
        yield
    finally:
        _libc("setns", here, _CLONE_NEWNET)
        os.close(here)


def _libc(function: str, *args: int) -> None:
    # os.unshare() and os.setns() are there from Python 3.12 on.
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*args) < 0:
        raise OSError(ctypes.get_errno(), f"{function}: {os.strerror(ctypes.get_errno())}")


def _relay(delay: float, devices: list[int]) -> None:
    other = dict(zip(devices, reversed(devices), strict=True))
    waiting = select.poll()
    for device in devices:
        waiting.register(device, select.POLLIN)
    under_way: list[tuple[float, int, int, bytes]] = []  # when it arrives, a number, where, what
    number = 0
    os.write(1, b"!")  # from here on no packet is late
    while True:
        left = under_way[0][0] - time.monotonic() if under_way else 3600.0
        for device, _ in waiting.poll(max(0.0, left) * 1000):
            number += 1
            arrival = time.monotonic() + delay
            heapq.heappush(under_way, (arrival, number, other[device], os.read(device, _PACKET)))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, device, packet = heapq.heappop(under_way)
            os.write(device, packet)


if __name__ == "__main__":
    _relay(float(sys.argv[1]), [int(text) for text in sys.argv[2:]])
