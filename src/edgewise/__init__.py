"""DevOps for fleets of edge nodes: hub, relay and agent in one package."""

__version__ = "0.1.0.dev0"
