"""``dragoman translate``: texts or lines of standard input through the client."""
