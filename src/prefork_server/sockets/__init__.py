"""Sockets as servers and workers use them; they know no worker."""
