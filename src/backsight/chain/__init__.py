"""From the features of any layer back to an image: a chain of inverses, its files, the model that it belongs to."""

from backsight.chain.chain import ChainEnsemble, InverseChain, Plan, build_chain, describe

__all__ = ["ChainEnsemble", "InverseChain", "Plan", "build_chain", "describe"]
