"""What is compared: how callers behave."""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.config import BreakerConfig, HealthConfig, RoutingConfig


@dataclass(frozen=True, kw_only=True)
class Policy:
    """A name for the table, and the settings."""

    name: str
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    breaker: BreakerConfig = field(default_factory=BreakerConfig)
    health: HealthConfig = field(default_factory=HealthConfig)
    shared: bool = True
    """Masters gather outcomes and share breakers."""


DEFAULT = Policy(name="default")


def alone(strategy: str) -> Policy:
    """A strategy without breakers, retries and hedges."""
    return Policy(
        name=strategy,
        routing=RoutingConfig(
            strategy=strategy, max_attempts=1, retry_budget=0.0, hedge_budget=0.0
        ),
        breaker=BreakerConfig(enabled=False),
        shared=False,
    )
