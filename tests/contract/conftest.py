"""A bundle of a small text model, for boards in one process."""

from pathlib import Path

import onnx
import pytest

from shoal.exporter.export import export
from shoal.manifest import Manifest
from shoal.store import Store
from tests import models

TOKENS = 11


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Manifest]:
    """Return a model file, the store that serves its bundle, and the manifest."""
    folder = tmp_path_factory.mktemp("bundle")
    model = folder / "bert.onnx"
    onnx.save(models.tiny_bert(hidden=32, heads=4), model)
    manifest = export(model, folder / "bundle", sizes={"tokens": TOKENS})
    store = Store(folder / "depot")
    for path in (*(folder / "bundle").glob("*.onnx"), *(folder / "bundle" / "blobs").iterdir()):
        store.put(path.read_bytes())
    return model, folder / "depot", manifest
