"""What every group of settings of a recipe is made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")]


class Section(BaseModel):
    """A frozen group of settings. Unknown keys, converted types, infinities and NaN are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _fill_missing_sections(cls, values: Any) -> Any:
        """An absent or empty section has its defaults."""
        if not isinstance(values, Mapping):
            return values
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        sections = [name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Section)]
        return {**values, **{name: {} for name in sections if values.get(name) is None}}
