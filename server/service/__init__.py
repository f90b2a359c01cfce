"""The gRPC service: checks requests, hands them to the decode loop, answers."""
