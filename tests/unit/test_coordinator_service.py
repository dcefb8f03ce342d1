"""What the shell around a cluster's controller reads from its store, without a broker."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from shoal.coordinator.service import Service
from shoal.coordinator.state import State
from shoal.coordinator.turns import Absence
from shoal.coordinator.weigh import Settings
from shoal.encoding import to_json
from shoal.messages import BundleSource
from shoal.store import Store
from tests import build

URL = "http://10.0.0.1:9000"


def found(folder: Path, manifest: bytes) -> State:
    """Return the state of a coordinator that has these bytes for the manifest of what is deployed."""
    store = Store(folder)
    service = Service("mqtt://127.0.0.1:1", "home", URL, store, Settings(), Absence())
    bundle = BundleSource(name="model", manifest=store.put(manifest).sha256, url=URL)
    state = State(incarnation=1, settings=Settings(), deployment=replace(build.deployment(), bundle=bundle))
    return service._with_manifest(state, bundle)


@pytest.mark.parametrize("spoil", ["cut off", "of another version"])
def test_a_bundle_that_cannot_be_read_is_told_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: str
) -> None:
    whole = to_json(build.chain([10, 10]))
    newer = json.dumps(json.loads(whole) | {"version": 10_000}).encode()
    caplog.set_level(logging.ERROR, "shoal.coordinator.service")
    state = found(tmp_path, {"cut off": whole[:-10], "of another version": newer}[spoil])
    assert state.manifest is None
    assert state.unreadable.startswith("a bundle that can be read: manifest ")
    assert caplog.messages == [state.unreadable.removeprefix("a bundle that can be read: ")]


def test_a_bundle_that_can_be_read_is_at_hand(tmp_path: Path) -> None:
    manifest = build.chain([10, 10])
    state = found(tmp_path, to_json(manifest))
    assert state.manifest == manifest
    assert state.unreadable == ""
