"""What all resource types share: the base model, rules, and bounded names.

A rule is one line of the Common Expression Language (CEL) for the API server with the same claim in Python beside it,
so that ``plan -f`` without a cluster rejects what the server rejects, at the same field.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema, to_jsonable_python

GROUP = "penstock.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One cross-field claim.

    Attributes
    ----------
    cel : str
        The claim for the API server; ``oldSelf`` in it makes it a rule about updates.
    message : str
        What must hold, said to the user.
    field : str
        The field to blame, relative to the object the rule sits on, as ``replicas.max``.
    holds : callable, optional
        The same claim in Python; None when only an update can break it.
    """

    cel: str
    message: str
    field: str = ""
    holds: Callable[[Any], bool] | None = None

    def to_validation(self) -> dict[str, str]:
        """Render as an entry of ``x-kubernetes-validations``."""
        place = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": self.cel, "message": self.message, **place}


def immutable(field: str, *, because: str) -> Rule:
    """Forbid changes of a field after creation."""
    return Rule(cel=f"self.{field} == oldSelf.{field}", field=field, message=f"{field} cannot change: {because}")


def _describe(schema: dict[str, Any], model: type[BaseModel]) -> None:
    """Add to the JSON schema what pydantic leaves out: rules, and defaults that a factory makes."""
    rules = getattr(model, "rules", ())
    if rules:
        schema["x-kubernetes-validations"] = [rule.to_validation() for rule in rules]
    for name, field in model.model_fields.items():
        if field.default_factory is None:
            continue
        made = field.get_default(call_default_factory=True, validated_data={})
        schema["properties"][field.alias or name]["default"] = to_jsonable_python(
            made, by_alias=True, exclude_none=True
        )


class Resource(BaseModel):
    """Base of every part of a resource: camelCase outside, frozen, strict, with rules."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra=_describe,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise PydanticCustomError("rule", "{message}", {"message": rule.message, "field": rule.field})
        return self


class Open(Resource):
    """A part that keeps fields we do not know: they belong to Kubernetes."""

    model_config = ConfigDict(extra="allow")


def text(max_length: int, *, pattern: str | None = None, min_length: int = 0) -> Any:
    """Bound a string; CEL costs are estimated from the bounds."""
    return Field(min_length=min_length, max_length=max_length, pattern=pattern)


class ListSet:
    """Marks a list whose items may not repeat."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(_refuse_repeats, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "x-kubernetes-list-type": "set"}


def _refuse_repeats(items: tuple[Any, ...]) -> tuple[Any, ...]:
    for place, item in enumerate(items):
        if item in items[:place]:
            raise PydanticCustomError("rule", "{message}", {"message": f"{item} is there twice", "field": f"[{place}]"})
    return items


LIST_SET = ListSet()

DnsLabel = Annotated[str, text(63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
LocationName = Annotated[str, text(63, min_length=1, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]
"""A location: the value of a node label."""
DnsName = Annotated[str, text(253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
LabelKey = Annotated[str, text(317, min_length=1)]
LabelValue = Annotated[str, text(63)]
QualifiedName = Annotated[str, text(317, pattern=r"^[a-z0-9.-]+/[A-Za-z0-9_.-]+$")]
ModelName = Annotated[str, text(253, pattern=r"^\S+$")]
ServiceName = Annotated[str, text(127, pattern=r"^[a-z0-9-]+/[a-z0-9.-]+$")]
ConfigLabel = Annotated[str, text(63, pattern=r"^tp[0-9]+(-[a-z0-9.-]+)?$")]
SizesLabel = Annotated[str, text(63, pattern=r"^(p[0-9]+-([0-9]+|up))?$")]
Message = Annotated[str, text(1024)]
Word = Annotated[str, text(63)]

Watts = Annotated[int, Field(ge=0, le=1_000_000_000)]
GpuWatts = Annotated[int, Field(ge=0, le=10_000)]
Permille = Annotated[int, Field(ge=1, le=1_000)]
Tokens = Annotated[int, Field(ge=1, le=100_000_000)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Amount = Annotated[int, Field(ge=0, le=1_000_000_000_000)]
Degree = Annotated[int, Field(ge=1, le=64)]

Selector = Annotated[dict[LabelKey, LabelValue], Field(max_length=16)]


class Condition(Resource):
    """One condition, as ``metav1.Condition``."""

    type: Annotated[str, text(316, min_length=1)]
    """Name of the condition, as Ready or WithinPowerBudget."""
    status: Literal["True", "False", "Unknown"]
    """Whether the condition holds."""
    reason: Annotated[str, text(1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """The cause in one CamelCase word."""
    message: Annotated[str, text(32768)]
    """The cause for a human, with names and numbers."""
    observed_generation: Annotated[int, Field(ge=0)] = 0
    """Generation of the spec that the condition speaks of."""
    last_transition_time: Annotated[str, Field(json_schema_extra={"format": "date-time"})]
    """When the status last changed."""


Conditions = Annotated[
    tuple[Condition, ...],
    Field(
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ),
]


class Status(Resource):
    """What every status says."""

    observed_generation: Annotated[int, Field(ge=0)] | None = None
    """Generation of the spec that this status speaks of."""
    conditions: Conditions = ()
    """Ready, TelemetryFresh, PlanFeasible, SLOsMet, WithinPowerBudget, Applied, as far as they concern the kind."""
