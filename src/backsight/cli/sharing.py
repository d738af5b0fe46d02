"""The commands that read what others have published, and publish: each is one public function, as in ``cli``."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import OmitArgPrefixes, Positional

from backsight.options import ModelOptions


def push(
    run: Positional[Path],
    repository: Positional[str],
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
    path: Positional[Path],
    model: str,
    out: Path,
    model_options: OmitArgPrefixes[ModelOptions] = ModelOptions(),  # noqa: B008  (frozen)
    overwrite: bool = False,
) -> None:
    """The inverses that the paper's authors published, as the chains of a run that `backsight reconstruct` opens.

    Args:
        path: A file or folder of their weights (never unpickled).
        model: The forward model that they invert, as detr-resnet-50.
        out: The run's folder.
        overwrite: Replace the run in the folder.
    """
    from backsight.authors import import_authors as run_import
    from backsight.training import open_model

    ensemble = run_import(path, open_model(model, model_options), out, overwrite=overwrite)
    print(f"{len(ensemble.chains)} chains, each with {', '.join(ensemble.entries)}\n{out / 'card.md'}")
