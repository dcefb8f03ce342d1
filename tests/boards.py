"""Lays out the recorded files of a board below a folder, so that it can stand for the root of that board."""

from pathlib import Path

from shoal.firmware_configs.sysfs import Tree

DATA = Path(__file__).parent / "data" / "boards"
RECORDED = tuple(sorted(path.stem for path in DATA.glob("*.txt")))


def plant(folder: Path, board: str) -> Tree:
    """Return a tree below `folder` that holds the recorded files of `board`."""
    tree = Tree(folder)
    for line in (DATA / f"{board}.txt").read_text("utf-8").splitlines():
        if line and not line.startswith("#"):
            path, _, content = line.partition(" = ")
            put(tree, path, content.replace("\\0", "\0").replace("\\n", "\n"))
    return tree


def put(tree: Tree, path: str, content: str | int) -> None:
    """Write one file, as a driver would: with a line feed at its end."""
    file = tree.at(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{content}\n", "utf-8")
