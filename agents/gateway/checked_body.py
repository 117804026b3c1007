"""Bodies, read by the mesh's own decoder: one error for one mistake, whatever the route."""

# ruff: noqa: ARG003 (the arguments are those of Litestar's base class)

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from litestar._openapi.schema_generation import SchemaCreator
from litestar.dto import AbstractDTO
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from agents.gateway.reading import read


class CheckedBody(AbstractDTO[Any]):
    """How Litestar gets `data` of a handler from the bytes of a request."""

    def decode_bytes(self, value: bytes) -> Any:
        """Raises: BadRequestError, InvalidError."""
        field = self.asgi_connection.route_handler.parsed_data_field
        return read(value, field.annotation)

    def data_to_encodable_type(self, data: Any) -> Any:
        """An answer is encoded as it is."""
        return data

    @classmethod
    def is_supported_model_type_field(cls, field_definition: FieldDefinition) -> bool:
        """It takes whatever msgspec reads."""
        return True

    @classmethod
    def create_for_field_definition(
        cls, field_definition: FieldDefinition, handler_id: str, backend_cls: Any = None
    ) -> None:
        """Nothing is to be prepared."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """Any: `agents.gateway.openapi` has msgspec say what the types are."""
        return Schema()

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """None: nothing is transferred field by field."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """No field is."""
        return False
