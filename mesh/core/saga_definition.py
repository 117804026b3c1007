"""Whether a saga makes sense as it was asked for, before anybody is asked about its actions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import msgspec

from mesh.core.saga_references import references
from mesh.errors import InvalidError
from mesh.wire import codec
from mesh.wire.messages import SagaDefinition
from mesh.wire.messages.sagas import MOST_DEFINITION_BYTES

_MOST_FIELDS = 50


def check_definition(definition: SagaDefinition) -> None:
    """Names, references and the place of final steps.

    Raises:
        InvalidError: `fields` names everything that is wrong: `steps[2].params.cents`.
    """
    size = len(codec.encode(definition))
    if size > MOST_DEFINITION_BYTES:
        raise refusal({"steps": [f"the saga has {size} bytes, more than {MOST_DEFINITION_BYTES}"]})
    wrong: dict[str, list[str]] = {}
    for where, message in _wrong(definition):
        if len(wrong) < _MOST_FIELDS:
            wrong.setdefault(where, []).append(message)
    if wrong:
        raise refusal(wrong)


def refusal(fields: dict[str, list[str]]) -> InvalidError:
    """The error that names them all."""
    words = "; ".join(f"{where}: {texts[0]}" for where, texts in fields.items())
    return InvalidError(words, fields=fields)


def digest_of(definition: SagaDefinition) -> str:
    """Equal for equal sagas, whatever the order of keys and whatever their id."""
    same = msgspec.structs.replace(definition, id="")
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()


def _wrong(definition: SagaDefinition) -> Iterator[tuple[str, str]]:
    if not definition.name.isprintable():  # some databases could not hold it
        yield "name", "must be printable"
    names = [step.name for step in definition.steps]
    final = ""
    for at, step in enumerate(definition.steps):
        where = f"steps[{at}]"
        if step.name in names[:at]:
            yield f"{where}.name", f"{step.name!r} is the name of two steps"
        if final and not step.final:
            yield f"{where}.final", f"must be true: there is no way back once {final!r} has begun"
        if step.final and step.compensate is not None:
            yield f"{where}.compensate", "a final step is never undone: leave this out, or `final`"
        final = final or (step.name if step.final else "")
        earlier = names[:at]
        yield from _wrong_references(f"{where}.params", step.params, earlier, names)
        if step.compensate is not None and step.compensate.params is not None:
            yield from _wrong_references(
                f"{where}.compensate.params", step.compensate.params, [*earlier, step.name], names
            )


def _wrong_references(
    where: str, params: object, earlier: list[str], names: list[str]
) -> Iterator[tuple[str, str]]:
    for found in references(params):
        place = f"{where}{found.where}"
        shown = found.text[:80]
        if found.reference is None:
            yield (
                place,
                f"{shown!r} must be ${{step.field}} and no more; $${{…}} is the text ${{…}}",
            )
        elif found.reference.step not in earlier:
            kind = "a later" if found.reference.step in names else "no"
            there = ", ".join(earlier) or "none"
            yield place, f"{shown!r} names {kind} step; before it there are: {there}"
