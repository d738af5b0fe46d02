"""The command that serves the web page."""

from __future__ import annotations


def app(
    model: tuple[str, ...] = (),
    chain: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    device: str = "auto",
) -> None:
    """The web page: look through a model's eyes, recolour, replace tokens, compare, diagnose. Local by default.

    Args:
        model: Forward models; those that the chains were trained on, or the zoo's if nothing is named.
        chain: For each model a run, one chain, or a name; those that ship with the model if not given.
        data: Where examples and errors come from: one for all models, or one for each; what the chains were trained on
            if not given.
        host: The address to listen at; 127.0.0.1 lets nobody in from outside.
        port: The port to listen at.
        device: Where to compute: auto, cpu, cuda.
    """
    from backsight.app import serve

    serve(model, chain, data, host=host, port=port, device=device)
