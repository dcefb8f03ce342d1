"""Programs that run the model in one piece on one board, for a lead."""

from collections.abc import Mapping

from shoal.manifest import WHOLE, Manifest
from shoal.program import Exchange, Program, Run
from shoal.records import BoardId

ALONE = Program(steps=(Run(segment=WHOLE),))


def on(manifest: Manifest, lead: BoardId, board: BoardId) -> Mapping[BoardId, Program]:
    """Return the programs of a lane that runs the whole model on `board` for `lead`."""
    if board == lead:
        return {lead: ALONE}
    inputs = tuple(spec.name for spec in manifest.inputs)
    outputs = tuple(spec.name for spec in manifest.outputs)
    return {
        lead: Program(
            steps=(
                Exchange(kind="send", tag=0, tensors=inputs, peer=board),
                Exchange(kind="recv", tag=1, tensors=outputs, peer=board),
            )
        ),
        board: Program(
            steps=(
                Exchange(kind="recv", tag=0, tensors=inputs, peer=lead),
                Run(segment=WHOLE),
                Exchange(kind="send", tag=1, tensors=outputs, peer=lead),
            )
        ),
    }
