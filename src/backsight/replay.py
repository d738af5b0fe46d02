"""The mechanism of a pass: hooks that record a forward, and stubs that answer from a recorded one.

*Recording.* Every call of a kept module gets a place in one running order when it finishes; so does every site.
*Replay.* The library's forward is called again. A call that had finished before the edited site is answered from the
trace, so it costs nothing and cannot differ; everything later runs for real, on the edited representation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from backsight.arrange import clone, from_features, pick_argument, read_field, to_features, write_field
from backsight.core import IMAGE, Site, Spec, UserError

Sites = Mapping[str, tuple[Site, ...]]
"""The sites of every stage and layer by name. Those of one name share their module and side."""


@dataclass(frozen=True)
class Call:
    """What a submodule answered, or what stood at a site, and its place in the order of the pass."""

    order: int
    value: Any


@dataclass
class Trace:
    """One forward pass.

    ``images`` ``B 3 H W`` in [0, 1]; ``features`` ``B N D`` by stage and layer name; the model's own ``output``, None
    when the pass was left early; what re-entry needs: the values at the sites as the library has them
    (``raw``), the calls of the kept submodules by path; and which pixels are ``valid``, ``B H W`` (None: all).
    """

    images: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Call] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    output: Any = None
    valid: Tensor | None = None

    def __getitem__(self, name: str) -> Tensor:
        """The features at a stage (``encoder``) or a layer (``encoder.3``), ``B N D``; ``image`` is the images.

        Raises:
            UserError: the pass did not get there.
        """
        if name == IMAGE:
            return self.images
        if name not in self.features:
            raise UserError(f"the trace has nothing at '{name}': it holds {', '.join(self.features)}")
        return self.features[name]

    def before(self, order: int) -> Trace:
        """Only what had happened before ``order``."""
        raw = {name: call for name, call in self.raw.items() if call.order < order}
        calls = {path: [call for call in calls if call.order < order] for path, calls in self.calls.items()}
        return Trace(self.images, {name: self.features[name] for name in raw}, raw, calls, valid=self.valid)

    def end(self) -> int:
        """The first place in the order that nothing has taken."""
        taken = [call.order for calls in self.calls.values() for call in calls]
        return 1 + max([*taken, *(call.order for call in self.raw.values())], default=-1)


class Reached(Exception):
    """Leaves a forward pass once everything that was asked for is captured: a signal, not an error."""


def named_sites(spec: Spec) -> dict[str, tuple[Site, ...]]:
    """The sites of ``spec``, layers (``encoder.0`` ...) before the stage that they lead to."""
    sites: dict[str, tuple[Site, ...]] = {}
    for stage in spec.stages:
        sites |= {f"{stage.name}.{index}": (layer,) for index, layer in enumerate(stage.layers)}
        sites[stage.name] = stage.sites
    return sites


def kept_modules(module: nn.Module, sites: Sites) -> dict[str, nn.Module]:
    """The submodules that re-entry must know of: those with a site, their ancestors, and the children of these.

    Raises:
        UserError: a site names a submodule that the model does not have.
    """
    modules = dict(module.named_modules())
    paths = {site.path for group in sites.values() for site in group}
    for path in paths - modules.keys():
        raise UserError(
            f"the model has no submodule '{path}': its children are {', '.join(dict(module.named_children()))}"
        )
    spine = {""} | {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 1)}
    return {path: each for path, each in modules.items() if path in spine | paths or _parent(path) in spine}


def _parent(path: str) -> str | None:
    return path.rpartition(".")[0] if path else None


@contextmanager
def stubbed(modules: Mapping[str, nn.Module], trace: Trace, start: int, own: str | None) -> Iterator[None]:
    """For the time of a pass, answer from ``trace`` every call that had finished before ``start``.

    ``own`` is the module whose output holds the edited site: it too is answered from the trace, and edited by a hook.
    """
    with ExitStack() as stack:
        for path, module in modules.items():
            known = [call.value for call in trace.calls.get(path, []) if call.order < start or path == own]
            if known:
                stack.enter_context(_forward_of(module, _answers(known, module.forward)))
        yield


@contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    previous = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if previous is None:
            del module.forward
        else:
            module.forward = previous


def _answers(values: list[Any], forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that gives ``values`` one call after the other, then goes on as ``forward``."""
    remaining = list(values)

    def answer(*args: Any, **kwargs: Any) -> Any:
        return clone(remaining.pop(0)) if remaining else forward(*args, **kwargs)

    return answer


@dataclass
class Recorder:
    """The hooks of one pass, which write into ``trace`` and make an edit on the way.

    ``wanted``: leave the pass once these are captured (None: run to the end). ``keep_calls``: record what re-entry
    needs.
    On a replay, ``base`` is the trace that is replayed (what it counted keeps its place in the order) and ``edit`` the
    name of the edited site with its new features.
    """

    sites: Sites
    modules: Mapping[str, nn.Module]
    trace: Trace
    wanted: set[str] | None = None
    keep_calls: bool = True
    base: Trace | None = None
    edit: tuple[str, Tensor] | None = None
    next: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on every kept module for the time of one pass."""
        with ExitStack() as stack:
            for path, module in self.modules.items():
                entering, leaving = self._names_at(path, "input"), self._names_at(path, "output")
                if entering:
                    hook = self._entering(entering)
                    stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
                if leaving or self.keep_calls:
                    hook = self._leaving(path, leaving)
                    stack.callback(module.register_forward_hook(hook, prepend=True).remove)
            yield

    def _names_at(self, path: str, side: str) -> list[str]:
        return [name for name, (site, *_) in self.sites.items() if site.path == path and site.side == side]

    def _entering(self, names: list[str]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            for name in names:
                value, write = pick_argument(module, args, kwargs, self.sites[name][0].field)
                (value,) = self._visit(name, [value], shares_order=False)
                args, kwargs = write(value)
            return args, kwargs

        return hook

    def _leaving(self, path: str, names: list[str]) -> Callable[..., Any]:
        def hook(_: nn.Module, __: tuple, output: Any) -> Any:
            for name in names:
                fields = [site.field for site in self.sites[name]]
                values = self._visit(name, [read_field(output, each) for each in fields], shares_order=True)
                for each, value in zip(fields, values, strict=True):
                    output = write_field(output, each, value)
            if self.keep_calls:
                self._count(path, output)
            return output

        return hook

    def _visit(self, name: str, values: list[Any], *, shares_order: bool) -> list[Any]:
        """Capture what stands at a site, edited if this is the place of the edit; leave the pass if that was all.

        A site on the output side shares its place in the order with the call that it ends.
        """
        if name in self.seen:
            raise UserError(
                f"the site of '{name}' ('{self.sites[name][0].path}') runs more than once in a forward pass"
            )
        self.seen.add(name)
        sites, size = self.sites[name], (self.trace.images.shape[-2], self.trace.images.shape[-1])
        if self.edit is not None and sites == self.sites[self.edit[0]]:
            # A copy: what the library does to it in place must reach neither the caller's features nor their trace.
            values = clone(from_features(self.edit[1], values, sites, size))
        if name not in self.trace.raw:
            kept = [clone(value) for value in values]
            self.trace.raw[name] = Call(self._place(name, shares_order), kept)
            self.trace.features[name] = to_features(kept, sites, size)
        if self.wanted is not None and self.wanted <= self.trace.features.keys():
            raise Reached
        return values

    def _place(self, name: str, shares_order: bool) -> int:
        if self.base is not None and name in self.base.raw:
            return self.base.raw[name].order
        return self.next if shares_order else self._take()

    def _take(self) -> int:
        self.next += 1
        return self.next - 1

    def _count(self, path: str, output: Any) -> None:
        index = self.counts.get(path, 0)
        self.counts[path] = index + 1
        kept = self.trace.calls.setdefault(path, [])
        if index < len(kept):
            return
        known = self.base.calls.get(path, []) if self.base is not None else []
        kept.append(Call(known[index].order if index < len(known) else self._take(), clone(output)))
