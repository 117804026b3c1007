"""The data plane needs no master: a broker and a node, seen by our client and by a bare one."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from typing import NamedTuple

import nats
import nats.errors
import pytest
import pytest_asyncio
from open_door import OpenDoor
from processes import BrokerProcess

import mesh
from mesh import bootstrap
from mesh.adapters.nats.bus import NatsBus
from mesh.adapters.nats.history import JetStreamHistory
from mesh.config import HealthConfig, MeshConfig, NatsConfig, SearchConfig
from mesh.errors import ConflictError, InvalidError, NoRespondersError, UnavailableError

pytestmark = pytest.mark.asyncio(loop_scope="module")

INVOICES = [
    {"id": "late", "content": "A late invoice is paid with interest.", "year": 2024},
    {"id": "early", "content": "An invoice paid early gets a discount.", "year": 2025},
    {"id": "holiday", "content": "The office is closed in August.", "year": 2025},
]
TICKET = mesh.Document(id="t1", content="Customer asks about a late invoice.")
SEARCH = "mesh.v1.rpc.crm.search.ops"
SEMVER = r"\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?"


def declared() -> mesh.Node:
    node = mesh.Node("CRM")

    @node.search("tickets")
    async def tickets(request: mesh.SearchRequest) -> list[mesh.Document]:
        return [TICKET]

    return node


class World(NamedTuple):
    """A broker that lets `crm` and `ops` in, and nothing else that a master does."""

    broker: BrokerProcess
    door: OpenDoor


def config_for(world: World) -> MeshConfig:
    crm = world.door.credentials("crm")
    return MeshConfig(
        nats=NatsConfig(servers=[world.broker.url], credentials=crm),
        search=SearchConfig(embedder="hash", timeout_ms=10_000),
        health=HealthConfig(heartbeat_interval_s=0.1),
    )


def connect(world: World):
    settings = MeshConfig(search=SearchConfig(timeout_ms=10_000))
    ops = world.door.credentials("ops")
    return mesh.connect(world.broker.url, credentials=ops, config=settings)


async def make_stream(broker: BrokerProcess) -> None:
    """What a master does when it starts, and no more."""
    config = NatsConfig(servers=[broker.url])
    bus = await NatsBus.connect("master", config, login=broker.login())
    try:
        await JetStreamHistory(bus).prepare()
    finally:
        await bus.close()


async def index_invoices(client, **options):
    params = {"collection": "app.Invoice", "documents": INVOICES}
    return await client.run_action("index", params, node="crm", **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory):
    """A broker with the history's stream and one node `crm` that holds three documents."""
    folder = tmp_path_factory.mktemp("without-master")
    broker = BrokerProcess(folder)
    broker.start()
    try:
        await make_stream(broker)
        async with OpenDoor(broker, nodes=["crm"], users=["ops"]) as door:
            made = World(broker, door)
            async with bootstrap.node(declared(), config_for(made), data_dir=folder / "crm"):
                async with connect(made) as client:
                    assert (await index_invoices(client)).result["indexed"] == len(INVOICES)
                yield made
    finally:
        broker.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(world):
    async with connect(world) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def bare(world):
    """A plain nats-py client whose replies come under the prefix it is told."""
    async with AsyncExitStack() as opened:

        async def make(prefix="mesh.v1.re.crm.ops", *, unlimited=False):
            """As `ops`, or with a login to which the broker forbids nothing."""
            options = {"inbox_prefix": prefix} if prefix else {}
            ops = world.door.login("ops")
            named = {"user": ops.user, "password": ops.password}
            login = world.broker.plain_login() if unlimited else named
            made = await nats.connect(world.broker.url, **login, **options)
            opened.push_async_callback(made.close)
            return made

        yield make


async def ask(nc, subject, payload=b"", timeout_s=5.0):
    return json.loads((await nc.request(subject, payload, timeout=timeout_s)).data)


# -- our client ------------------------------------------------------------------------------------


async def test_the_client_finds_the_node_by_its_service_card(client):
    routes = client.routes
    assert routes.epoch == 0, "a master has spoken"
    assert list(routes.nodes) == ["crm"]
    found = routes.node("crm")
    assert (found.name, found.health) == ("CRM", "healthy")
    assert {info.name: info.rows for info in found.collections} == {"app.Invoice": 3, "tickets": 0}
    assert {"index", "update", "delete", "drop"} <= set(found.actions)


async def test_search_finds_what_was_indexed(client):
    found = await client.search("late invoice", collections=["app.Invoice"])
    assert found.results[0].id == "late"
    best = found.results[0]
    assert (best.node, best.collection, best.model_class) == ("crm", "app.Invoice", "app.Invoice")
    assert best.content == INVOICES[0]["content"]
    assert best.metadata["year"] == 2024
    assert (found.partial, found.shards.ok, found.shards.total) == (False, 1, 1)


async def test_a_search_of_the_authors_own_is_found_with_stored_collections(client):
    found = await client.search("late invoice")
    assert {hit.collection for hit in found.results} == {"app.Invoice", "tickets"}
    (ticket,) = [hit for hit in found.results if hit.collection == "tickets"]
    assert (ticket.id, ticket.content, ticket.node) == (TICKET.id, TICKET.content, "crm")
    assert "late" in [hit.id for hit in found.results]
    assert found.shards.ok == found.shards.total == 2


async def test_an_unknown_column_is_refused(client):
    with pytest.raises(InvalidError, match="known: id, year"):
        await client.search("late invoice", filters={"nope": 1})


async def test_the_registry_is_away_and_says_so_at_once(client):
    began = asyncio.get_running_loop().time()
    with pytest.raises(NoRespondersError):
        await client.nodes()
    assert asyncio.get_running_loop().time() - began < 2


async def test_a_second_node_of_the_same_name_is_refused(world, client, tmp_path):
    with pytest.raises(ConflictError, match="'crm' is already running"):
        async with bootstrap.node(
            mesh.Node("crm"), config_for(world), data_dir=tmp_path / "another"
        ):
            pass
    assert (await client.search("late invoice")).count


@pytest_asyncio.fixture(loop_scope="module")
async def no_stream(broker):
    async with OpenDoor(broker, nodes=["crm"], users=["ops"]) as door:
        yield World(broker, door)


async def test_without_a_stream_an_action_is_refused_and_nothing_runs(no_stream, tmp_path):
    config = config_for(no_stream)
    async with bootstrap.node(declared(), config, data_dir=tmp_path / "crm"):
        async with connect(no_stream) as client:
            with pytest.raises(UnavailableError, match="nothing was run") as refused:
                await index_invoices(client, id="once")
            assert refused.value.retryable
            assert await held(no_stream) == {"tickets"}
            with pytest.raises(InvalidError, match="unknown collection"):
                await client.search("late invoice", collections=["app.Invoice"])
            assert [hit.id for hit in (await client.search("late invoice")).results] == ["t1"]

            await make_stream(no_stream.broker)
            await asyncio.sleep(2 * (refused.value.retry_after_ms or 0) / 1000)
            # The refusal kept nothing of the id.
            assert (await index_invoices(client, id="once")).result["indexed"] == len(INVOICES)
        assert await held(no_stream) == {"app.Invoice", "tickets"}


async def held(world: World) -> set[str]:
    """Collections that the node says it has."""
    async with connect(world) as client:
        return {info.name for info in client.routes.node("crm").collections}


# -- any NATS client -------------------------------------------------------------------------------


async def test_plain_json_gets_results(bare):
    reply = await ask(await bare(), SEARCH, b'{"query":"late invoice"}')
    assert reply["type"] == "ok"
    result = reply["result"]
    assert {"late", "t1"} <= {hit["id"] for hit in result["results"]}
    assert result["count"] == len(result["results"])
    assert {"id", "content", "score", "model_class", "model_type", "metadata", "node"} <= set(
        result["results"][0]
    )
    assert result["partial"] is False


async def test_malformed_json_is_400(bare):
    reply = await ask(await bare(), SEARCH, b'{"query": late')
    assert (reply["type"], reply["code"], reply["kind"]) == ("error", 400, "bad_request")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"query": "x", "limit": 101}, "limit"),
        ({"query": ""}, "query"),
        ({}, "query"),
        ({"query": "x", "options": {"collections": ["nope"]}}, "options.collections"),
    ],
)
async def test_what_cannot_be_is_422_with_its_field(bare, request_, field):
    reply = await ask(await bare(), SEARCH, json.dumps(request_).encode())
    assert (reply["type"], reply["code"], reply["kind"]) == ("error", 422, "invalid")
    assert list(reply["fields"]) == [field]
    assert all(reply["fields"][field])


async def test_an_unknown_verb_is_400(bare):
    reply = await ask(await bare(unlimited=True), "mesh.v1.rpc.crm.dance.ops")
    assert (reply["code"], "search" in reply["message"]) == (400, True)


@pytest.mark.parametrize("address", ["", ".crm", ".crm.{id}"])
async def test_service_verbs_answer_as_adr_32_says(bare, address):
    nc = await bare("mesh.v1.re.srv.ops")
    instance = (await ask(nc, "$SRV.PING"))["id"]
    where = address.format(id=instance)

    ping, info, stats = [await ask(nc, f"$SRV.{verb}{where}") for verb in ("PING", "INFO", "STATS")]
    for kind, answer in {"ping": ping, "info": info, "stats": stats}.items():
        assert answer["type"] == f"io.nats.micro.v1.{kind}_response"
        assert (answer["name"], answer["id"]) == ("crm", instance)
        assert re.fullmatch(SEMVER, answer["version"])
        assert all(isinstance(text, str) for text in answer["metadata"].values())

    assert info["description"]
    schema = json.loads(info["metadata"]["mesh.action.index"])
    assert "collection" in json.dumps(schema)
    subjects = {point["name"]: point["subject"] for point in info["endpoints"]}
    assert subjects["search"] == "mesh.v1.rpc.crm.search.*"
    assert subjects["index"] == "mesh.v1.act.crm.index.*"
    assert all(set(point) >= {"name", "subject", "queue_group"} for point in info["endpoints"])

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", stats["started"])
    assert {point["name"]: point["subject"] for point in stats["endpoints"]} == subjects
    for point in stats["endpoints"]:
        figures = ("num_requests", "num_errors", "processing_time", "average_processing_time")
        assert all(type(point[figure]) is int for figure in figures)
        assert isinstance(point["last_error"], str)


async def test_service_stats_count_searches(bare, client):
    nc = await bare("mesh.v1.re.srv.ops")

    async def searches():
        points = (await ask(nc, "$SRV.STATS.crm"))["endpoints"]
        return next(point for point in points if point["name"] == "search")

    before = await searches()
    await client.search("late invoice")
    after = await searches()
    assert after["num_requests"] == before["num_requests"] + 1
    assert after["average_processing_time"] > 0


async def test_service_stats_count_actions_and_pings_and_name_what_is_served(bare, client):
    nc = await bare("mesh.v1.re.srv.ops")

    async def counts():
        points = (await ask(nc, "$SRV.STATS.crm"))["endpoints"]
        return {point["name"]: point["num_requests"] for point in points}

    before = await counts()
    assert {"search", "fetch", "ping", "cancel", "index", "drop"} <= set(before)
    assert "export" not in before
    await index_invoices(client)
    await ask(await bare(), "mesh.v1.rpc.crm.ping.ops", b"{}")
    after = await counts()
    assert {name for name in after if after[name] > before[name]} == {"index", "ping"}


async def test_services_of_other_names_are_nobodys(bare):
    nc = await bare("mesh.v1.re.srv.ops")
    with pytest.raises(nats.errors.NoRespondersError):
        await nc.request("$SRV.PING.erp", b"", timeout=5)


async def test_a_reply_may_go_to_the_asker_alone_and_others_are_counted(bare):
    """Else a request could have the node write to any subject there is."""
    nc = await bare(unlimited=True)
    beats = await nc.subscribe("mesh.v1.hb.crm")

    async def dropped():
        while True:
            yield json.loads((await beats.next_msg(timeout=5)).data).get("dropped", 0)

    counts = dropped()
    before = await anext(counts)
    plain = await bare(prefix="", unlimited=True)
    other = await bare("mesh.v1.re.crm.somebody", unlimited=True)
    stranger = await bare("mesh.v1.re.erp.ops", unlimited=True)
    wrong = [
        (plain, SEARCH, b'{"query":"late invoice"}'),
        (plain, "mesh.v1.act.crm.drop.ops", b'{"action":"drop"}'),
        (plain, "$SRV.INFO", b""),
        (other, SEARCH, b'{"query":"late invoice"}'),
        (stranger, SEARCH, b'{"query":"late invoice"}'),
    ]
    answers = await asyncio.gather(
        *(client.request(subject, payload, timeout=0.4) for client, subject, payload in wrong),
        return_exceptions=True,
    )
    assert [type(answer) for answer in answers] == [nats.errors.TimeoutError] * len(wrong)
    async with asyncio.timeout(10):
        async for count in counts:
            if count >= before + len(wrong):
                break
    assert count == before + len(wrong)
