"""Search, scheduler and decode loop: pure Python over the Runner protocol, no gRPC."""
