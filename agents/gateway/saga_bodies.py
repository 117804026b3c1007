"""What clients send and get of sagas."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from agents.gateway.bodies import check_depth
from mesh import messages


class SagaAsked(messages.SagaDefinition, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A saga to run: steps in order, each with what undoes it."""

    wait: Annotated[
        bool, Meta(description="Answer when it has ended; otherwise at once, with 202.")
    ] = True
    wait_s: Annotated[
        Annotated[float, Meta(gt=0, le=86_400)] | None,
        Meta(
            description="How long at most; then the answer is a 202. Left out: until the saga's own"
            " time is over."
        ),
    ] = None

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps):
            check_depth(f"steps[{number}].params", step.params)
            if step.compensate is not None:
                check_depth(f"steps[{number}].compensate.params", step.compensate.params or {})

    @property
    def definition(self) -> messages.SagaDefinition:
        """Without what is only the gateway's."""
        fields = messages.SagaDefinition.__struct_fields__
        return messages.SagaDefinition(**{name: getattr(self, name) for name in fields})


class SagaAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How far a saga is. `success`: every step was done."""

    success: bool
    saga: messages.Saga


class SagaPage(msgspec.Struct, frozen=True, kw_only=True):
    """Newest first, without parameters and results; `total` match."""

    sagas: list[messages.Saga]
    total: int
    limit: int
    offset: int
