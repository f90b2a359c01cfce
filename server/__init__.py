"""The online half: search, scheduler, decode loop, gRPC service, client and the demo bundle. Imports no torch."""
