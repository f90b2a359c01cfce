"""The wire contract, version 1: ``from dragoman.v1 import translation_pb2, translation_pb2_grpc``."""
