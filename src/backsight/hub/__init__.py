"""Chains on the Hugging Face hub: one repository for the chains of a forward model, fetched and published by name."""

from backsight.hub.fetch import fetch, is_hub_name, locate
from backsight.hub.publish import publish

__all__ = ["fetch", "is_hub_name", "locate", "publish"]
