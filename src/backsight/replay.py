"""The mechanism of a pass: hooks that record a forward, and stubs that answer from a recorded one.

*Recording.* Every call of a kept module gets a place in one running order when it finishes; so does every site.
*Replay.* The library's forward is called again. A call that had finished before the edited site is answered from the
trace, so it costs nothing and cannot differ; everything later runs for real, on the edited representation. Calls made
inside an answered one do not happen: a module that is used in there, and once more elsewhere, goes on with its next.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from backsight.arrange import clone, pick_argument, read_field, to_features, write_field
from backsight.core import IMAGE, Site, Spec, UserError

Sites = Mapping[str, tuple[Site, ...]]
"""The sites of every stage and layer by name."""


@dataclass(frozen=True)
class Call:
    """What a submodule answered, or what stood at a site, and its place in the ``order`` of the pass. What finished
    from ``begun`` on, and before it, happened inside the call."""

    order: int
    value: Any
    begun: int = 0


@dataclass
class Trace:
    """One forward pass.

    ``images`` ``B 3 H W`` in [0, 1]; ``features`` ``B N D`` by stage and layer name; the model's own ``output``, None
    when the pass was left early; what re-entry needs: the values at the sites as the library has them
    (``raw``), the calls of the kept submodules by path and number; and which pixels are ``valid``, ``B H W`` (None:
    all).
    """

    images: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)
    raw: dict[str, Call] = field(default_factory=dict)
    calls: dict[str, dict[int, Call]] = field(default_factory=dict)
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

    def __contains__(self, name: object) -> bool:
        """Whether ``trace[name]`` has features."""
        return name == IMAGE or name in self.features

    def __iter__(self) -> Iterator[str]:
        """The names of the stages and layers that the pass came by, in its order; the images are not among them."""
        return iter(self.features)

    def __len__(self) -> int:
        return len(self.features)

    def __bool__(self) -> bool:
        """A pass is one, though it kept no features."""
        return True

    def keys(self) -> KeysView[str]:
        """The names, as in a dict."""
        return self.features.keys()

    def __repr__(self) -> str:
        shapes = {IMAGE: self.images.shape} | {name: value.shape for name, value in self.features.items()}
        return f"Trace({', '.join(f'{name} {tuple(shape)}' for name, shape in shapes.items())})"

    def _repr_html_(self) -> str:
        from backsight.display import trace_html

        return trace_html(self)

    def before(self, order: int, edited: Sequence[Site] = ()) -> Trace:
        """Only what had happened before ``order``, and of the modules that ``edited`` sites are in before the first of
        these."""
        own = {site.path for site in edited}
        own |= ancestors(own) if own else set()
        first = min([order, *(self._begin_of(site, order) for site in edited)])
        raw = {name: call for name, call in self.raw.items() if call.order < order}
        calls = {
            path: {number: call for number, call in calls.items() if call.order < (first if path in own else order)}
            for path, calls in self.calls.items()
        }
        return Trace(self.images, {name: self.features[name] for name in raw}, raw, calls, valid=self.valid)

    def _begin_of(self, site: Site, order: int) -> int:
        """The place in the order of what stands at one site; ``order`` where its call never ended."""
        call = self.calls.get(site.path, {}).get(site.call or 0)
        return order if call is None else call.order if site.side == "output" else call.begun

    def end(self) -> int:
        """The first place in the order that nothing has taken."""
        taken = [call.order for calls in self.calls.values() for call in calls.values()]
        return 1 + max([*taken, *(call.order for call in self.raw.values())], default=-1)


class Reached(Exception):
    """Leaves a forward pass once everything that was asked for is captured: a signal, not an error."""


def named_sites(spec: Spec) -> dict[str, tuple[Site, ...]]:
    """The sites of ``spec``, layers (``encoder.0`` ...) before the stage that they lead to."""
    return {name: sites for stage in spec.stages for name, sites in stage.cuts.items()}


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
    spine = ancestors(paths)
    kept = spine | paths
    return {path: each for path, each in modules.items() if path in kept or path.rpartition(".")[0] in spine}


def ancestors(paths: Iterable[str]) -> set[str]:
    """The modules that those at ``paths`` are in; the model itself, "", always."""
    return {""} | {".".join(path.split(".")[:depth]) for path in paths for depth in range(1, path.count(".") + 1)}


@dataclass(frozen=True)
class Replay:
    """How a pass runs that repeats ``base`` until the ``edited`` sites, whose place in its order is ``start``.

    ``answered``: the calls that get their answer from the trace, by path and number: what had finished before
    ``start``, and the modules whose output is edited, by a hook. Those around an edit run, to pass it on.
    ``happening``: the numbers of the calls that happen at all, in order.
    """

    base: Trace
    start: int
    answered: Mapping[str, Mapping[int, Call]]
    happening: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, base: Trace, start: int, edited: Sequence[Site]) -> Replay:
        """What is answered, and what happens, where ``edited`` sites are the place of the edit."""
        own, around = {site.path for site in edited if site.side == "output"}, ancestors(site.path for site in edited)
        known = {
            path: {number: call for number, call in calls.items() if call.order < start + (path in own)}
            for path, calls in base.calls.items()
            if path not in around
        }
        spans = sorted((call.begun, call.order) for calls in known.values() for call in calls.values())
        outermost: list[tuple[int, int]] = []
        for span in spans:
            # Of two that begin at once, the one that ends later holds the other.
            while outermost and span[0] <= outermost[-1][0] and outermost[-1][1] < span[1]:
                outermost.pop()
            if not outermost or span[1] > outermost[-1][1]:
                outermost.append(span)
        ends = [order for _, order in outermost]

        def happens(call: Call) -> bool:
            index = bisect.bisect_left(ends, call.order)
            return index == len(ends) or call.order == ends[index] or call.order < outermost[index][0]

        happening = {
            path: [number for number, call in calls.items() if happens(call)] for path, calls in base.calls.items()
        }
        answered = {path: {n: calls[n] for n in happening[path] if n in calls} for path, calls in known.items()}
        return cls(base, start, answered, happening)

    @contextmanager
    def stubs(self, modules: Mapping[str, nn.Module]) -> Iterator[None]:
        """The answers in the place of the modules' forwards, for the time of a pass."""
        with ExitStack() as stack:
            for path, calls in self.answered.items():
                if calls:
                    module, values = modules[path], [call.value for call in calls.values()]
                    stack.enter_context(_forward_of(module, _answers(values, module.forward)))
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
    needs. On a ``replay``, what its trace counted keeps its place in the order, and ``edit`` holds the edited sites
    with what is to stand there. ``begun`` says that a part of the edit is made. ``running``: the number and the
    beginning of the calls that have begun, by path; ``numbers`` gives the next ones.
    """

    sites: Sites
    modules: Mapping[str, nn.Module]
    trace: Trace
    wanted: set[str] | None = None
    keep_calls: bool = True
    replay: Replay | None = None
    edit: Mapping[Site, Any] = field(default_factory=dict)
    begun: bool = False
    next: int = 0
    running: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    numbers: dict[str, Iterator[int]] = field(default_factory=dict)
    seen: dict[str, dict[int, Any]] = field(default_factory=dict)

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hooks on every kept module for the time of one pass."""
        with ExitStack() as stack:
            for path, module in self.modules.items():
                entering, leaving = self._places_at(path, "input"), self._places_at(path, "output")
                if entering or leaving or self.keep_calls:
                    before, after = self._entering(path, entering), self._leaving(path, leaving)
                    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
                    stack.callback(module.register_forward_hook(after, prepend=True).remove)
            yield

    def _places_at(self, path: str, side: str) -> list[tuple[str, int]]:
        """The sites on one side of the module at ``path``: a stage's or layer's name, and which of its sites."""
        return [
            (name, index)
            for name, sites in self.sites.items()
            for index, site in enumerate(sites)
            if (site.path, site.side) == (path, side)
        ]

    def _entering(self, path: str, places: list[tuple[str, int]]) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            number = next(self.numbers.setdefault(path, self._numbers(path)))
            for name, index in places:
                site = self.sites[name][index]
                if site.call in (None, number):
                    value, write = pick_argument(module, args, kwargs, site.field)
                    args, kwargs = write(self._visit(name, index, self._as_it_was(name, index, value)))
            self.running.setdefault(path, []).append((number, self.next))
            return args, kwargs

        return hook

    def _numbers(self, path: str) -> Iterator[int]:
        """The numbers of the calls of the module at ``path``, in the order in which they happen."""
        if self.replay is None:
            return itertools.count()
        known = self.replay.base.calls.get(path, {})
        return itertools.chain(self.replay.happening.get(path, ()), itertools.count(1 + max(known, default=-1)))

    def _as_it_was(self, name: str, index: int, value: Any) -> Any:
        """What stood at an input before the replayed part, which an edit there may have put in the place of ``value``;
        outputs are kept with their calls. Once a part of the edit is made, ``value`` may carry it on, and stays."""
        if self.replay is None or self.begun:
            return value
        known = self.replay.base.raw.get(name)
        return clone(known.value[index]) if known is not None and known.order < self.replay.start else value

    def _leaving(self, path: str, places: list[tuple[str, int]]) -> Callable[..., Any]:
        def hook(_: nn.Module, __: tuple, output: Any) -> Any:
            number, begun = self.running[path].pop()
            for name, index in places:
                site = self.sites[name][index]
                if site.call in (None, number):
                    output = write_field(output, site.field, self._visit(name, index, read_field(output, site.field)))
            if self.keep_calls:
                self._count(path, number, begun, output)
            return output

        return hook

    def _visit(self, name: str, index: int, value: Any) -> Any:
        """Capture what stands at a site, edited if this is the place of the edit; leave the pass if that was all."""
        site, seen = self.sites[name][index], self.seen.setdefault(name, {})
        if index in seen:
            raise UserError(
                f"the site of '{name}' ('{site.path}') runs more than once in a forward pass: say which call is meant, "
                "as call: 0 for the first"
            )
        if site in self.edit:
            # A copy: what the library does to it in place must reach neither the caller's features nor their trace.
            value, self.begun = clone(self.edit[site]), True
        seen[index] = clone(value) if name not in self.trace.raw else value
        if name not in self.trace.raw and len(seen) == len(self.sites[name]):
            self._keep(name, [seen[index] for index in range(len(seen))], site.side)
        if self.wanted is not None and self.wanted <= self.trace.features.keys():
            raise Reached
        return value

    def _keep(self, name: str, values: list[Any], side: str) -> None:
        """A name's place in the order is that of its last site, which on the output side shares it with the call that
        it ends."""
        if self.replay is not None and name in self.replay.base.raw:
            order = self.replay.base.raw[name].order
        else:
            order = self.next if side == "output" else self._take()
        size = (self.trace.images.shape[-2], self.trace.images.shape[-1])
        self.trace.raw[name] = Call(order, values)
        self.trace.features[name] = to_features(values, self.sites[name], size)

    def _take(self) -> int:
        self.next += 1
        return self.next - 1

    def _count(self, path: str, number: int, begun: int, output: Any) -> None:
        kept = self.trace.calls.setdefault(path, {})
        if number in kept:
            return
        known = self.replay.base.calls.get(path, {}).get(number) if self.replay is not None else None
        order, begun = (self._take(), begun) if known is None else (known.order, known.begun)
        kept[number] = Call(order, clone(output), begun)
