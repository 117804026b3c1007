"""The promises of health and routing, in virtual time: real rules, scripted faults."""

from __future__ import annotations

import pytest
from simulator.policies import DEFAULT, Policy, alone
from simulator.simulated_mesh import SimulatedMesh, table

from mesh.config import BreakerConfig, RoutingConfig
from mesh.types import BreakerState, Health

WARM_S = 4.0
QUICK = Policy(name="quick", breaker=BreakerConfig(retry_timeout_s=3.0))


def warm(policy=DEFAULT, **shape):
    return SimulatedMesh(policy, **shape).run(WARM_S).measure()


def test_the_same_seed_gives_the_same_run_and_another_one_does_not():
    reports = [warm(seed=seed).run(1).report() for seed in (3, 3, 4)]
    assert reports[0] == reports[1] != reports[2]


def slow_one_of_ten(policy):
    """p99 when all are well, and with one ten times as slow."""
    mesh = warm(policy, replicas=10, rate=200)
    healthy = mesh.run(5).report().p99_ms
    mesh.nodes[0].slow = 10.0
    return healthy, mesh.measure().run(8).report().p99_ms


def test_one_slow_node_of_ten_is_hardly_noticed_where_random_choice_suffers():
    healthy, slow = slow_one_of_ten(DEFAULT)
    assert slow <= 1.5 * healthy
    healthy, slow = slow_one_of_ten(alone("p2c"))
    assert slow <= 1.5 * healthy, "without hedges too"
    healthy, slow = slow_one_of_ten(alone("random"))
    assert slow > 5 * healthy


def test_a_slow_node_that_recovers_gets_its_share_again():
    mesh = warm(alone("p2c"), replicas=10, rate=200)
    mesh.nodes[0].slow = 10.0
    mesh.run(5)
    mesh.nodes[0].slow = 1.0
    before = mesh.run(30).nodes[0].received
    mesh.measure().run(5)
    got = mesh.nodes[0].received - before
    assert got >= 0.5 * mesh.report().offered / 10


def test_a_crash_of_one_of_three_fails_no_call_and_is_routed_around_at_once():
    mesh = warm(rate=500)
    mesh.crash(mesh.nodes[0])
    report = mesh.run(4).report()
    assert report.failed == 0
    assert 0 < report.out_of_rotation_s <= 0.25


def test_a_hang_of_one_of_three_fails_no_call():
    mesh = warm(rate=500)
    mesh.nodes[0].hung = True
    report = mesh.run(4).report()
    assert report.failed == 0
    assert 0 < report.out_of_rotation_s <= 3.5
    bare = warm(alone("random"), rate=500)
    bare.nodes[0].hung = True
    assert bare.run(4).report().failed > 50


def test_what_a_resumed_node_finds_in_its_queue_has_expired_and_is_not_run():
    mesh = warm(rate=300)
    node = mesh.nodes[0]
    node.hung = True
    mesh.run(1.5)
    assert node.queue
    node.go_on()
    assert not node.queue
    assert node.at_work == 0


@pytest.mark.parametrize("breakers", [True, False], ids=["breakers", "budget_alone"])
def test_in_a_total_outage_hardly_more_is_sent_than_offered(breakers):
    """However many attempts a call may have."""
    policy = Policy(
        name="outage",
        breaker=BreakerConfig(enabled=breakers),
        routing=RoutingConfig(max_attempts=10),
        shared=breakers,
    )
    mesh = warm(policy, replicas=1, callers=4, rate=300)
    mesh.nodes[0].failing = True
    began = mesh.run(12).measure().time.now  # what the calls before it paid for is used up
    report = mesh.run(8).report()
    reserve = 4 * 10
    assert report.sent <= 1.2 * report.offered + reserve
    assert not any(answered for at, _, answered in mesh.tallies.calls if at >= began)
    if breakers:
        assert report.sent <= 0.1 * report.offered, "breakers spare what is down nearly everything"
    else:
        assert report.sent > report.offered, "the budget was put to use"


def test_half_open_never_more_probes_than_must_succeed_from_fifty_callers():
    mesh = warm(QUICK, replicas=1, callers=50, rate=500)
    node = mesh.nodes[0]
    node.failing = True
    mesh.run(8)
    assert mesh.master.board.words(node.slug)
    node.failing = False
    before = mesh.tallies.offered
    mesh.run(15)
    assert mesh.tallies.offered > before
    assert 1 <= mesh.tallies.most_probing <= QUICK.breaker.success_threshold
    states = {caller.lanes[node.slug].breaker.state for caller in mesh.callers}
    assert states == {BreakerState.CLOSED}
    assert mesh.measure().run(2).report().failed == 0


def test_with_the_masters_dead_callers_open_and_close_by_themselves():
    mesh = warm(QUICK, replicas=1, callers=3, rate=100)
    mesh.master.alive = False
    mesh.nodes[0].failing = True
    mesh.run(5)
    mesh.nodes[0].failing = False
    mesh.run(8)
    report = mesh.measure().run(2).report()
    assert (report.offered > 0, report.failed) == (True, 0)


def test_with_the_masters_dead_after_their_word_it_is_void_and_callers_go_on():
    mesh = warm(QUICK, replicas=1, callers=3, rate=100)
    mesh.nodes[0].failing = True
    mesh.run(1.5)
    assert mesh.master.board.words(mesh.nodes[0].slug)
    mesh.master.alive = False
    mesh.nodes[0].failing = False
    mesh.run(8)
    assert mesh.measure().run(2).report().failed == 0


def test_a_node_that_fails_everything_costs_its_shard_no_call():
    mesh = warm(QUICK, rate=300)
    mesh.nodes[0].failing = True
    report = mesh.run(8).report()
    assert report.failed == 0
    assert report.sent <= 1.2 * report.offered


def test_a_flapping_node_rejoins_later_and_later():
    mesh = SimulatedMesh(rate=50).run(WARM_S)
    node, waits = mesh.nodes[0], []
    for _ in range(6):
        mesh.crash(node)
        mesh.run(1.0)
        assert mesh.master.published[node.slug].health is Health.UNREACHABLE
        node.start()
        started = mesh.time.now
        while mesh.master.published[node.slug].health is not Health.HEALTHY:
            mesh.run(0.1)
            assert mesh.time.now - started < 60
        waits.append(mesh.time.now - started)
    assert max(waits[:2]) <= 1.5, "a fall or two is forgiven"
    assert waits[3] >= 1.5 * waits[2] > 1.5
    assert waits[4] >= 1.5 * waits[3]
    assert mesh.tallies.failed == 0


def lose(mesh, how):
    if how == "gone":
        mesh.lose_broker()
    elif how == "hung":
        mesh.master.broker_up = False
    else:
        mesh.master.hears = False


@pytest.mark.parametrize("how", ["gone", "hung", "deaf_master"])
def test_a_broker_that_is_away_is_no_mass_death(how):
    mesh = warm(QUICK, shards=20, rate=100)
    lose(mesh, how)
    mesh.run(10)
    assert mesh.master.detector.blind
    assert (mesh.report().failed > 0) == (how != "deaf_master"), "callers go on without a master"
    mesh.master.hears = True
    mesh.find_broker()
    mesh.run(5)
    assert not mesh.master.detector.blind
    assert mesh.master.false_deaths == []
    assert {route.health for route in mesh.master.published.values()} == {Health.HEALTHY}
    assert mesh.measure().run(2).report().failed == 0


def test_callers_that_lost_the_broker_blame_nobody_and_are_served_as_soon_as_it_is_back():
    mesh = warm(shards=5, rate=200)
    mesh.lose_broker()
    mesh.run(10).find_broker()
    mesh.run(0.5).measure()
    assert mesh.run(3).report().failed == 0
    assert all(
        lane.breaker.state is BreakerState.CLOSED
        for caller in mesh.callers
        for lane in caller.lanes.values()
    )


def test_a_partitioned_node_is_given_up_and_found_again_and_no_other_one():
    mesh = warm(shards=10, rate=200)
    cut = mesh.nodes[0]
    cut.cut_off = True
    report = mesh.run(6).report()
    assert report.failed == 0
    assert report.out_of_rotation_s <= 3.5
    assert [
        slug
        for slug, route in mesh.master.published.items()
        if route.health is not (Health.HEALTHY)
    ] == [cut.slug]
    cut.cut_off = False
    mesh.run(3)
    assert mesh.master.published[cut.slug].health is Health.HEALTHY
    assert mesh.master.false_deaths == []


def test_a_loop_that_is_blocked_for_five_seconds_ten_times_is_never_a_death():
    mesh = warm(rate=100)
    for _ in range(10):
        mesh.nodes[0].stalled = True
        mesh.run(5)
        assert mesh.master.published[mesh.nodes[0].slug].health is Health.STALLED
        mesh.nodes[0].go_on()
        mesh.run(2)
        assert mesh.master.published[mesh.nodes[0].slug].health is Health.HEALTHY
    assert mesh.master.false_deaths == []
    assert mesh.tallies.failed == 0


def test_push_back_of_an_overloaded_shard_is_no_storm():
    """Half as much again as three nodes can do, which say so in time."""
    mesh = warm(replicas=3, callers=10, rate=900, service_ms=10.0, parallel=2, queued=20)
    report = mesh.run(6).report()
    assert report.sent <= 1.25 * report.offered + 10 * 10
    assert report.retried > 0, "they did push back"
    assert report.offered - report.failed >= 0.9 * 600 * 6, "what they can do, they do"
    assert mesh.master.false_deaths == []


@pytest.mark.parametrize("rate", [900, 1800])
def test_a_queue_longer_than_callers_wait_is_no_collapse(rate):
    """Three nodes can do 600 a second; their queues hold 1,280 ms of work, and callers wait 800 ms.
    Whoever fills them works for nobody.
    """
    shape = {"callers": 10, "rate": rate, "service_ms": 50.0, "parallel": 10, "queued": 256}
    naive = warm(**shape, refuses_late=False).run(8).report()
    assert naive.offered - naive.failed < 0.1 * 600 * 8
    mesh = warm(**shape)
    report = mesh.run(8).report()
    assert report.offered - report.failed >= 0.8 * 600 * 8
    assert report.p99_ms < 800
    assert mesh.master.false_deaths == []


def test_hundreds_of_nodes_of_which_forty_break_at_once():
    mesh = warm(shards=100, replicas=3, callers=10, rate=400)
    for shard in range(20):
        mesh.crash(mesh.shards[f"s{shard}"][0])
        mesh.shards[f"s{shard + 20}"][1].hung = True
    report = mesh.run(5).report()
    assert report.failed == 0
    assert report.false_deaths == 0
    away = [slug for slug, one in mesh.master.published.items() if one.health is not Health.HEALTHY]
    assert len(away) == 40


def test_the_table_puts_policies_side_by_side():
    reports = [warm(policy).run(1).report() for policy in (DEFAULT, alone("random"))]
    title, head, *rows = table("healthy", reports).splitlines()
    assert title == "healthy"
    assert head.split()[:3] == ["policy", "calls", "failed"]
    assert [row.split()[0] for row in rows] == ["default", "random"]
    assert [int(row.split()[1]) for row in rows] == [report.offered for report in reports]
