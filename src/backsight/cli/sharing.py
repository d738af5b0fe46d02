"""The commands that share: the web page, the Hugging Face hub, what the authors of the paper published."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from backsight.options import ModelOptions


def app(
    model: tuple[str, ...] = (),
    chain: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    host: str = "127.0.0.1",
    port: int = 7860,
    allow_host: tuple[str, ...] = (),
    root_path: str = "",
    device: str = "auto",
) -> None:
    """The web page: look through a model's eyes, recolour, replace tokens, compare, diagnose. Local by default.

    Args:
        model: Forward models; those that the chains were trained on, or the zoo's if nothing is named.
        chain: For each model a run, one chain, or a name; those that ship with the model if not given. `linear`: ridge
            regressions on the data, solved at once.
        data: Where examples and errors come from: one for all models, or one for each; what the chains were trained on
            if not given.
        host: The address to listen at; 127.0.0.1 lets nobody in from outside.
        port: The port to listen at.
        allow_host: Names under which the page may be asked for, beside this machine's own: those of a proxy.
        root_path: Where a proxy has the page, as /backsight.
        device: Where to compute: auto, cpu, cuda.
    """
    from backsight.app import serve

    serve(model, chain, data, host=host, port=port, allow_host=allow_host, root_path=root_path, device=device)


def push(
    run: Annotated[Positional[Path], arg(metavar="RUN")],
    repository: Annotated[Positional[str], arg(metavar="OWNER/NAME")],
    pictures: tuple[Path, ...] = (),
    private: bool = False,
    revision: str | None = None,
) -> None:
    """Give the chains of a run to the Hugging Face hub, with a model card, their errors and pictures.

    Args:
        run: The folder of a run, or of one chain.
        repository: OWNER/NAME, made if there is none.
        pictures: Picture files for the model card, or folders that `backsight reconstruct` wrote.
        private: Make a new repository private.
        revision: A branch to write to, made if there is none.
    """
    from backsight.chain import ChainEnsemble

    chains = ChainEnsemble.from_pretrained(run)
    print(chains.push_to_hub(repository, pictures=pictures, private=private, revision=revision))


def import_authors(
    path: Annotated[Positional[Path], arg(metavar="PATH")],
    model: str,
    out: Path,
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
    normalisation: Literal["imagenet", "none", "model"] = "imagenet",
    overwrite: bool = False,
) -> None:
    """The inverses that the paper's authors published, as the chains of a run that `backsight reconstruct` opens.

    Args:
        path: A file or folder of their weights (never unpickled).
        model: The forward model that they invert, as detr-resnet-50.
        out: The run's folder.
        normalisation: How images were normalised when they were trained: by ImageNet's statistics, not at all, or by
            the model's own.
        overwrite: Replace the run in the folder.
    """
    from backsight.authors import import_authors as run_import
    from backsight.training import open_model

    ensemble = run_import(path, open_model(model, model_options), out, normalisation=normalisation, overwrite=overwrite)
    print(f"{len(ensemble.chains)} chains, each with {', '.join(ensemble.entries)}\n{out / 'card.md'}")
