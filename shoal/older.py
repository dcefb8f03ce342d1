"""Manifests of older versions, as what they mean now."""

from typing import Any, Final

IN_PARTS: Final = 5
"""From this version on steps say what can be run in place of their segment (`shoal.manifest.InParts`)."""


def renewed(body: dict[str, Any]) -> dict[str, Any]:
    """Return what was read of a manifest with what its version did not say; what is wrong in it stays so."""
    if body["version"] < IN_PARTS:
        for sharding in _listed(body, "shardings"):
            for step in _listed(sharding, "steps"):
                if isinstance(step, dict) and "segment" in step:
                    step.update(in_parts=None, means_in_parts=None)
    return body


def _listed(body: object, key: str) -> list[object]:
    found = body.get(key) if isinstance(body, dict) else None
    return found if isinstance(found, list) else []
