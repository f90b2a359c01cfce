"""What executes a bundle's graphs: the protocol and its implementations."""
