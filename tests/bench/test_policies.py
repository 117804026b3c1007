"""Strategies side by side in virtual time: what callers notice of each fault."""

from __future__ import annotations

import sys

import pytest
from simulator.policies import DEFAULT, alone
from simulator.simulated_mesh import SimulatedMesh, table

pytestmark = [pytest.mark.bench, pytest.mark.timeout(300)]

POLICIES = (
    DEFAULT,
    *(
        alone(strategy)
        for strategy in (
            "p2c",
            "least_connections",
            "response_time",
            "round_robin",
            "weighted",
            "random",
        )
    ),
)


def nothing(mesh):
    """All are well."""


def crash(mesh):
    mesh.crash(mesh.nodes[0])


def hang(mesh):
    mesh.nodes[0].hung = True


def slow(mesh):
    mesh.nodes[0].slow = 10.0


def fail(mesh):
    mesh.nodes[0].failing = True


def outage(mesh):
    for node in mesh.nodes:
        node.failing = True


def partition(mesh):
    mesh.nodes[0].cut_off = True


@pytest.mark.parametrize("fault", [nothing, crash, hang, slow, fail, outage, partition])
def test_policies_side_by_side(fault):
    reports = []
    for policy in POLICIES:
        mesh = SimulatedMesh(policy, replicas=10, callers=5, rate=300).run(5).measure()
        fault(mesh)
        reports.append(mesh.run(15).finish().report())
    title = f"{fault.__name__}: 10 replicas, 300 calls/s, 15 s"
    sys.stdout.write(f"\n{table(title, reports)}\n")
    ours, bare = reports[0], reports[-1]
    assert ours.failed <= bare.failed
    assert ours.sent <= 1.2 * ours.offered
    assert ours.false_deaths == 0
