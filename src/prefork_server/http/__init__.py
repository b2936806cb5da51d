"""HTTP/1.1 on the prefork core: what is on the wire, and who answers it.

The core never imports this package; a server that speaks another protocol loads nothing of it.
"""
