"""Chains from the hub: fetched, or taken from the local cache, and checked against the repository's manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backsight.core import UserError
from backsight.hub.manifest import MANIFEST, check_files, read_manifest
from backsight.shipped import FLOWS, SAMPLED, find_shipped

TIMEOUT = 10
"""Seconds to wait for the hub's first answer."""
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_NETWORK = ("httpx", "httpcore", "requests", "urllib3", "socket", "ssl")
"""How the libraries are called that the hub's client has used to reach it, and whose errors mean that it could not."""


def is_hub_name(name: str) -> bool:
    """Whether ``name`` is ``owner/name`` and no file or folder that is here."""
    return bool(_NAME.fullmatch(name)) and not name.startswith("zoo/") and not Path(name).exists()


def locate(name: str | Path, revision: str | None = None, *, one: bool = False) -> Path:
    """The folder of the chains called ``name``: a folder that is here, ``zoo/...``, or ``owner/name`` on the hub.

    ``zoo/NAME/flows`` are the inverses of ``zoo/NAME`` that sample, where it has such. With ``one``, what ships and
    what is fetched is the first seed's chain alone. Errors are those of :func:`fetch`.
    """
    model, flows = str(name).removesuffix(f"/{FLOWS}"), str(name).endswith(f"/{FLOWS}")
    shipped = find_shipped(model)
    if shipped is not None:
        folder = shipped / (FLOWS if flows else "chains")
        if not folder.is_dir():
            raise UserError(f"{model} has no inverses that sample here: a checkout has those of {', '.join(SAMPLED)}")
        return folder / ("0" if one else "")
    return fetch(str(name), revision, one=one) if is_hub_name(str(name)) else Path(name)


def fetch(name: str, revision: str | None = None, *, one: bool = False) -> Path:
    """The local folder of the chains in the repository ``owner/name``, every file checked against its manifest.

    What the hub has now is fetched into Hugging Face's cache. Without a network, or with ``HF_HUB_OFFLINE`` set, the
    cached copy is taken.

    Args:
        name: ``owner/name``.
        revision: a branch, a tag or a commit; the main branch by default.
        one: fetch the chain of the first seed alone.

    Returns:
        The folder with ``chains/<seed>``; with ``one``, that of the one chain.

    Raises:
        UserError: no such repository or revision, no network and no copy, or a file that is not what the manifest says.
    """
    with explained(name, revision):
        reachable = _reachable(name, revision)
        folder = _snapshot(name, revision, [MANIFEST], local=not reachable)
        if not (folder / MANIFEST).is_file():
            raise UserError(f"{name} holds no chains: it has no {MANIFEST}; `backsight push` writes such a repository")
        files = read_manifest(folder / MANIFEST, name)
        first = min((file for file in files if file.endswith("/chain.json")), key=lambda file: int(file.split("/")[1]))
        chain = first.removesuffix("chain.json")
        wanted = {file: value for file, value in files.items() if not one or file.startswith(chain)}
        folder = _snapshot(name, revision, [MANIFEST, *wanted], local=not reachable)
    check_files(folder, wanted, name, list(files))
    return folder / chain if one else folder


def _reachable(name: str, revision: str | None) -> bool:
    """Whether the hub answers; a wrong name or revision is an error, a missing network is not."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        HfApi().model_info(name, revision=revision, timeout=TIMEOUT)
    except OfflineModeIsEnabled:
        return False
    except Exception as error:
        if not is_network_error(error):
            raise
        return False
    return True


def _snapshot(name: str, revision: str | None, patterns: list[str], *, local: bool) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=local))


def is_network_error(error: BaseException) -> bool:
    """Whether the hub could not be reached. The hub's client changes its network library, and with it the errors."""
    homes = {kind.__module__.partition(".")[0].rstrip("0123456789") for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None and (not homes.isdisjoint(_NETWORK) or isinstance(error, ConnectionError | TimeoutError))


@contextmanager
def explained(name: str, revision: str | None = None, *, writing: bool = False) -> Iterator[None]:
    """The errors of the hub's client as one line each.

    Raises:
        UserError: with the cause in words, and what would fix it.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise UserError(f"HF_HUB_OFFLINE is set: unset it to push {name}") from error
    except errors.LocalEntryNotFoundError as error:
        which = f"{name} at revision '{revision}'" if revision else name
        raise UserError(
            f"there is no folder {name}, {which} is not whole in the local cache, and the hub cannot be reached (or "
            "HF_HUB_OFFLINE is set): check the name, or try again with a network"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{name} has no revision '{revision}': give a branch, a tag or a commit that it has") from error
    except errors.HFValidationError as error:
        raise UserError(f"'{name}' is no name of a repository: write owner/name") from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403, 404):
            raise UserError(f"the hub answers {status} for {name}: try again later") from error
        what = "let you write to" if writing else "have, or let you read,"
        raise UserError(
            f"the hub does not {what} {name} ({status}): check the name, or log in with `hf auth login`"
        ) from error
    except Exception as error:
        if not is_network_error(error):
            raise
        raise UserError(f"no network ({type(error).__name__}): the hub cannot be reached for {name}") from error
