"""The small trained models and chains that ship with the package, with a card each."""
