"""What a line of the registry says: a method, a task.

Example::

    Method("baselines.lookahead:LookaheadDrafter", lossless=True, kind="drafter", options={"window": PositiveInt})
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

Origin = Literal["embedded", "path", "hub"]
Share = Annotated[float, Field(ge=0, le=1)]  # the type of an option
Part = str  # draft, heads, mixer, datastore, or the name of a parallel generator's weights


@dataclass(frozen=True)
class Method:
    """One way to generate.

    ``target`` is ``module:name`` of a class: of a drafter or, for a peer, of one with ``from_pretrained``. ``lossless``
    is what the method claims. ``kind`` is ``drafter`` (runs in our engine), ``peer`` (another library's own loop) or
    ``generator`` (a model of its own, held against its autoregressive twin).
    ``options`` gives the type of each option that a configuration may set; the default values are the target's own.
    ``fixed`` are options that the method's name stands for, which no configuration may set. ``parts`` are the trained
    parts that it cannot do without. ``acceptance`` is ``module:name`` of a lossy rule, with ``acceptance_options`` like
    ``options``. ``also`` are modules that it only imports when it is built. ``needs`` says which parts it needs where
    that depends on its options. ``check`` raises ValueError where options that are right one by one do not go together.
    ``twin_chooses`` says that a generator is built with its autoregressive twin, which has a part in what it writes.
    """

    target: str
    lossless: bool
    kind: Literal["drafter", "peer", "generator"]
    options: Mapping[str, Any] = field(default_factory=dict)
    check: Callable[[Mapping[str, Any]], None] | None = None
    parts: tuple[Part, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)
    acceptance: str | None = None
    acceptance_options: Mapping[str, Any] = field(default_factory=dict)
    also: tuple[str, ...] = ()
    needs: Callable[[Mapping[str, Any]], tuple[Part, ...]] | None = None
    twin_chooses: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """The modules that define the method."""
        return (*(name.partition(":")[0] for name in (self.target, self.acceptance) if name), *self.also)

    def parts_with(self, options: Mapping[str, Any]) -> tuple[Part, ...]:
        """Return the trained parts that the method needs with these options."""
        return self.needs(options) if self.needs else self.parts

    @property
    def all_options(self) -> Mapping[str, Any]:
        """The type of each option that a configuration may set, the drafter's and the rule of acceptance's."""
        return {**self.options, **self.acceptance_options}

    @property
    def definition(self) -> str:
        """What the name stands for, as text that changes when that does."""
        claim = "lossless" if self.lossless else "lossy"
        names = [self.target, *filter(None, [self.acceptance]), self.kind, claim, *["twin chooses"] * self.twin_chooses]
        return " ".join([*names, *(f"{name}={value!r}" for name, value in self.fixed.items())])


@dataclass(frozen=True)
class Task:
    """One thing to ask for.

    ``source`` is the module that reads the data, ``yaml`` the lm-eval task that turns a document into a prompt,
    ``metric`` the one repeated in ``quality``, ``group`` the kind of work. ``origins`` are where its data can come
    from: ``embedded`` (a package; taken if the configuration names no other), ``path``, ``hub``. ``stratum``, if there
    is one, names the function that says of which kind a document is: quality is then told for each kind, too.
    """

    source: str
    yaml: str
    metric: str
    group: str
    origins: tuple[Origin, ...]
    stratum: str | None = None

    @property
    def kinds_from(self) -> list[str]:
        """The module that tells kinds of documents apart, if there is one."""
        return [self.stratum.partition(":")[0]] if self.stratum else []
