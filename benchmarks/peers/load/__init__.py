"""The running server under load: its throughput over gRPC, and its latency against the rate of arrivals."""
