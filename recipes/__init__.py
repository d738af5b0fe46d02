"""How the models and chains in ``src/backsight/zoo/weights`` were trained: ``python -m recipes NAME [--chains]``."""
