"""Boards with memory for the whole model: requests over HTTP, and everything that is not a request."""

import asyncio
import json
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import tritonclient.http as triton

from shoal import oip, wire
from shoal.coordinator import client
from shoal.coordinator.client import Operator
from shoal.lab.load import compare
from shoal.lab.processes import Cluster
from shoal.messages import Alarm, Birth, Desired, Message
from shoal.mqtt import Mqtt
from shoal.program import Plan
from shoal.records import Address, Array, BoardId
from tests.real.client import MODEL, Pictures, Trial, Watch, slow_board

BOARDS = (BoardId("pi-1"), BoardId("pi-2"))
WHOLE_S = 0.1
"""What a board takes for a request: so long that two of them on one busy core answer twice as many as one."""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, undivided: Path, pictures: Pictures) -> Iterator[Trial]:
    """Two boards that share requests: each holds the whole model."""
    folder = tmp_path_factory.mktemp("pair")
    slow = slow_board(folder / "slow.json", undivided, WHOLE_S)
    with Cluster(folder, "embedded", margin=0.3) as cluster:
        trial = Trial(
            cluster=cluster, bundle=undivided, pictures=pictures, budget=None, boards=BOARDS, emulation=slow
        )
        trial.start()
        trial.deploy("throughput")
        yield trial


async def shared(watch: Watch) -> Plan:
    """Wait for a plan of both boards, and return it."""
    plan = await watch.plan_with(lambda boards: boards == set(BOARDS), "a plan of both boards")
    assert plan.strategy == "replicate"
    return plan


@pytest.fixture(scope="module")
def lead(pair: Trial) -> Address:
    found: list[Address] = []

    async def look(watch: Watch) -> None:
        await pair.whole(watch)
        plan = await shared(watch)
        found.append(plan.addresses[plan.lead])

    pair.watch(look)
    return found[0]


@pytest.fixture
def asker(lead: Address) -> Iterator[triton.InferenceServerClient]:
    found = triton.InferenceServerClient(f"{lead.host}:{lead.http_port}")
    yield found
    found.close()


def batch_of(pictures: Pictures, rows: int) -> Array:
    return np.concatenate([pictures.inputs[i]["pixel_values"] for i in range(rows)])


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_tritons_client_gets_the_unsplit_models_answer(
    asker: triton.InferenceServerClient, pictures: Pictures, binary: bool, rows: int
) -> None:
    asked = triton.InferInput("pixel_values", [rows, 1, 28, 28], "FP32")
    asked.set_data_from_numpy(batch_of(pictures, rows), binary_data=binary)
    wanted = triton.InferRequestedOutput("logits", binary_data=binary)
    answer = asker.infer(MODEL, [asked], outputs=[wanted], request_id="seven").as_numpy("logits")
    expected = np.concatenate([pictures.expected[i]["logits"] for i in range(rows)])
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-5)


def test_health_and_metadata(asker: triton.InferenceServerClient) -> None:
    assert asker.is_server_live()
    assert asker.is_server_ready()
    assert asker.is_model_ready(MODEL)
    assert asker.get_server_metadata()["name"] == "shoal"
    metadata = asker.get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "pixel_values", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}]


def test_a_request_that_does_not_fit_is_refused_by_name(
    asker: triton.InferenceServerClient, pictures: Pictures
) -> None:
    wrong = triton.InferInput("pixel_values", [1, 28, 28, 1], "FP32")
    wrong.set_data_from_numpy(pictures.inputs[0]["pixel_values"].reshape(1, 28, 28, 1))
    with pytest.raises(triton.InferenceServerException, match=r"pixel_values: expected shape") as refusal:
        asker.infer(MODEL, [wrong])
    assert refusal.value.status() == "400"
    with pytest.raises(triton.InferenceServerException, match="expected model"):
        asker.get_model_metadata("other")


def post(lead: Address, body: bytes, headers: dict[str, str]) -> tuple[int, str]:
    url = f"{lead.http_url}/v2/models/{MODEL}/infer"
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_request_that_is_too_large_is_refused(lead: Address) -> None:
    with socket.create_connection((lead.host, lead.http_port), 10) as sock:
        head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 40}\r\n\r\n"
        sock.sendall(head.encode())
        chunk = bytes(1 << 20)
        try:
            for _ in range(80):
                sock.sendall(chunk)
        except OSError:
            pass  # it has answered and closed: no need to send the rest
        assert b" 413 " in sock.recv(4096)


@pytest.mark.parametrize("body", [b"", b"\x00\xff" * 99, b"[]", b'{"inputs": 7}', b'{"inputs": []}'])
def test_a_body_that_is_no_request_is_refused(lead: Address, body: bytes) -> None:
    status, text = post(lead, body, {"Inference-Header-Content-Length": str(len(body))})
    assert status == 400
    assert json.loads(text)["error"]


@pytest.mark.parametrize(
    ("deadline_ms", "status", "words"),
    [
        ("60000", 200, "outputs"),
        ("0", 504, "deadline"),
        ("0.01", 504, "deadline"),
        ("soon", 400, "deadline_ms"),
    ],
)
def test_a_deadline_is_met_or_the_request_is_refused(
    pair: Trial, lead: Address, pictures: Pictures, deadline_ms: str, status: int, words: str
) -> None:
    body, length = oip.render_request(pictures.inputs[0])
    headers = {oip.JSON_LENGTH: str(length), oip.DEADLINE_MS: deadline_ms}
    follower: list[Address] = []

    async def look(watch: Watch) -> None:
        births = [said[Birth] for said in watch.view.boards.values()]
        follower.extend(b.address for b in births if isinstance(b, Birth) and b.address != lead)

    pair.watch(look)
    for address in (lead, follower[0]):  # which hands it on, with what is left of the deadline
        found, text = post(address, body, headers)
        assert found == status
        assert words in text


async def refused(birth: Message | None, garbage: bytes) -> None:
    """Send garbage to a board's data port and see the connection closed."""
    assert isinstance(birth, Birth)
    reader, writer = await asyncio.open_connection(birth.address.host, birth.address.data_port)
    writer.write(garbage)
    await writer.drain()
    assert await reader.read() == b""
    writer.close()


def test_hostile_bytes_end_no_board(pair: Trial) -> None:
    """Random bytes on the data port, and messages to MQTT topics that are not what they should be."""

    async def attack(watch: Watch) -> None:
        births = [said[Birth] for said in watch.view.boards.values()]
        assert len(births) == len(BOARDS)
        rubbish = (os.urandom(4096), b"SHL1" + b"\xff" * 200, b"GET / HTTP/1.1\r\n\r\n")
        await asyncio.gather(*(refused(birth, garbage) for birth in births for garbage in rubbish))
        import paho.mqtt.client as paho
        from paho.mqtt.enums import CallbackAPIVersion

        hostile = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311)
        hostile.connect(watch.operator._mqtt.url.host, watch.operator._mqtt.url.port)
        hostile.loop_start()
        for board in BOARDS:
            topic = wire.topic("default", Desired, board)
            for payload in (b"\xff\xfe", b"[]", b'{"v":1,"m":{}}', b'{"v":99,"m":{}}', b"[" * 5000):
                hostile.publish(topic, payload, 1).wait_for_publish(5)
        for topic in (
            "shoal/v1/default/board/../birth",
            "shoal/v1/default/nonsense",
            "shoal/v1/default/plan",
        ):
            hostile.publish(topic, b"{", 1).wait_for_publish(5)
        hostile.disconnect()
        await asyncio.to_thread(hostile.loop_stop)
        await asyncio.sleep(0.5)

    tally = pair.under_load(attack)
    assert tally.failed == 0
    assert tally.wrong == 0
    assert all(process.running for process in pair.cluster.boards.values())
    assert pair.cluster.coordinator.running


def test_any_board_may_be_asked(pair: Trial, pictures: Pictures) -> None:
    async def ask(watch: Watch) -> None:
        await pair.whole(watch)
        for said in watch.view.boards.values():
            birth = said[Birth]
            assert isinstance(birth, Birth)
            answer = await client.infer(watch.http, birth.address.http_url, MODEL, pictures.inputs[0])
            assert compare(answer["logits"], pictures.expected[0]["logits"])[1]

    pair.watch(ask)


def test_a_client_in_a_hurry_harms_nobody_else(pair: Trial, lead: Address, pictures: Pictures) -> None:
    """Requests that may take no time at all run out of it; that is no sign against boards or links."""

    async def hurry(watch: Watch) -> None:
        before = len(watch.plans)
        body, length = oip.render_request(pictures.inputs[0])
        head = json.loads(body[:length])
        head["parameters"]["timeout"] = 1
        text = json.dumps(head).encode()
        headers = {oip.JSON_LENGTH: str(len(text))}
        for _ in range(15):
            status, _ = await asyncio.to_thread(post, lead, text + body[length:], headers)
            assert status in (200, 503)
            await asyncio.sleep(0.05)
        reasons = [plan.reason for plan in watch.plans[before:]]  # a noisy machine may call for another plan
        assert not any("lost" in reason or "fail" in reason for reason in reasons), reasons
        assert not any(Alarm in said for said in watch.view.boards.values())

    tally = pair.under_load(hurry)
    assert (tally.failed, tally.wrong, tally.troubles) == (0, 0, [])


def test_a_lost_replica_costs_no_request(pair: Trial) -> None:
    async def trouble(watch: Watch) -> None:
        plan = await shared(watch)
        victim = min(plan.boards - {plan.lead})
        pair.cluster.boards[victim].kill()
        after = await watch.plan_with(lambda boards: victim not in boards, f"a plan without {victim}")
        assert after.strategy == "local"
        pair.restart(victim)
        await shared(watch)

    tally = pair.under_load(trouble)
    assert (tally.failed, tally.wrong) == (0, 0), tally.troubles


def test_a_board_waits_for_its_broker(tmp_path: Path) -> None:
    """An agent that is started before the broker joins as soon as that is there."""
    cluster = Cluster(tmp_path, "embedded")
    board = cluster.start_board(BoardId("early"))
    try:

        async def look() -> bool:
            async with Operator(cluster.url, "default") as operator:
                for _ in range(100):
                    await operator.next(0.1)
                    if "early" in operator.view.alive:
                        return True
            return False

        async def late() -> bool:
            for _ in range(100):
                await asyncio.sleep(0.1)
                if f"broker {cluster.url}: cannot be reached; trying again" in board.log.read_text():
                    break
            else:
                raise AssertionError(board.log.read_text())
            assert board.running
            await asyncio.to_thread(cluster.start_broker)
            return await look()

        assert asyncio.run(late())
    finally:
        board.kill()
        if hasattr(cluster, "broker"):
            cluster.broker.stop()


def test_no_broker_is_a_clear_error_for_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    from click.testing import CliRunner

    from shoal.cli import cli
    from shoal.errors import ConfigError
    from shoal.lab.processes import free_port

    monkeypatch.setattr(client, "TIMEOUT_S", 1.0)
    url = f"mqtt://127.0.0.1:{free_port()}"
    found = CliRunner().invoke(cli, ["status", "--broker", url])
    assert isinstance(found.exception, ConfigError)
    assert url in str(found.exception)
    assert "is it running" in str(found.exception)
    found = CliRunner().invoke(cli, ["coordinator", "--broker", "mqtt://no.such.host.invalid"])
    assert isinstance(found.exception, ConfigError)
    assert "there is no host called no.such.host.invalid" in str(found.exception)


def test_mqtt_says_when_it_is_away_and_back(tmp_path: Path) -> None:
    from shoal.mqtt import Down, Up

    async def run() -> None:
        cluster = Cluster(tmp_path, "embedded")
        cluster.start_broker()
        mqtt = Mqtt(cluster.url, "default", "test", filters=(wire.every("default"),))
        mqtt.start()
        try:
            assert isinstance(await mqtt.next(10), Up)
            cluster.broker.kill()
            assert isinstance(await mqtt.next(10), Down)
            assert not mqtt.clear(Desired, BoardId("x"))
            await asyncio.to_thread(cluster.start_broker)
            event = await mqtt.next(10)
            while not isinstance(event, Up):
                assert event is not None
                event = await mqtt.next(10)
        finally:
            await mqtt.stop()
            cluster.broker.stop()

    asyncio.run(run())


def test_a_spoilt_blob_is_refused_and_named(pair: Trial, undivided: Path, tmp_path: Path) -> None:
    import shutil

    from shoal.errors import ModelError

    spoilt = tmp_path / "spoilt"
    shutil.copytree(undivided, spoilt)
    victim = max((spoilt / "blobs").iterdir(), key=lambda file: file.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[7] ^= 1
    victim.write_bytes(content)
    (pair.cluster.folder / "coordinator" / "blobs" / victim.name).unlink()

    async def upload() -> None:
        async with Operator(pair.cluster.url, "default") as operator, aiohttp.ClientSession() as http:
            await client.upload(http, client.coordinator_url(operator.view), spoilt)

    with pytest.raises(ModelError, match=victim.name[:12]):
        asyncio.run(upload())
