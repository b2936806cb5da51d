"""The standard library's XML-RPC server, preforked by one line.

Try it: python -c "import xmlrpc.client as x; print(x.ServerProxy('http://127.0.0.1:9000').pid())"
"""

import os
import sys
from typing import Any

del sys.path[0]  # the directory of this file, which has the name of a module it needs
from xmlrpc.server import SimpleXMLRPCServer  # noqa: E402

from prefork_server import PreforkMixIn, Settings  # noqa: E402


def power(base: Any, exponent: Any) -> Any:
    return base**exponent


class Server(PreforkMixIn, SimpleXMLRPCServer):
    settings = Settings(workers=4)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 9000
    with Server(("127.0.0.1", port), logRequests=False, allow_none=True) as server:
        server.register_introspection_functions()
        server.register_function(power, "pow")
        server.register_function(os.getpid, "pid")  # which worker answers
        server.serve_forever()
