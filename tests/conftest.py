"""How tests are shared among processes that run them at once."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file together, which share what they start, but each kind of broker apart."""
    for item in items:
        parameters = (
            item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        )
        item.add_marker(pytest.mark.xdist_group(f"{item.path.stem} {parameters.get('kind', '')}"))
