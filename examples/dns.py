"""A small name server, by dnslib (pip install dnslib), whose two servers are preforked.

Try it: dig @127.0.0.1 -p 9000 one.example, and with +tcp.
"""

import sys
import threading
from typing import Any

from prefork_server import PreforkMixIn, Settings

try:
    from dnslib import RR
    from dnslib.server import BaseResolver, DNSServer, TCPServer, UDPServer
except ImportError:
    sys.exit("this example needs dnslib: pip install dnslib")

ZONE = RR.fromZone("""
one.example.  60 IN A    192.0.2.1
two.example.  60 IN TXT  "prefork"
""")


class Zone(BaseResolver):  # type: ignore[misc]
    def resolve(self, request: Any, handler: Any) -> Any:
        reply = request.reply()
        asked = request.q.qname
        reply.add_answer(*(record for record in ZONE if record.rname == asked))
        return reply


class PreforkedUDP(PreforkMixIn, UDPServer):  # type: ignore[misc]
    settings = Settings(workers=2)


class PreforkedTCP(PreforkMixIn, TCPServer):  # type: ignore[misc]
    settings = Settings(workers=2)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    over_tcp = DNSServer(Zone(), "127.0.0.1", port, server=PreforkedTCP)
    port = over_tcp.server.server_address[1]
    over_udp = DNSServer(Zone(), "127.0.0.1", port, server=PreforkedUDP)
    # One of them serves in a thread, the other here, where Ctrl-C is heard.
    beside = threading.Thread(target=over_tcp.start)
    beside.start()
    try:
        over_udp.start()
    finally:
        over_tcp.stop()
        beside.join()
