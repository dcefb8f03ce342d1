"""Makes a Transformer of ViT-B's shape: `python -m benchmarks.vit FILE [--fused]`.

12 layers of 768, 12 heads, fp32, random weights, token ids in.  `--fused` has com.microsoft's
MultiHeadAttention in place of MatMul, Softmax, MatMul, with the same weights.
"""

import sys

import onnx

from tests.models import Builder, Shape, tiny_transformer

MICROSOFT = "com.microsoft"


class Fused(Builder):
    """Builds attention of one operator."""

    def attention(self, x: str, hidden: int, heads: int, *, bias: str = "", batch: int = 0) -> str:
        """Add multi-head attention; without `bias`, for any `batch`."""
        assert not bias
        assert not batch
        q, k, v = (self.linear(x, hidden, hidden) for _ in range(3))
        return self.linear(self.node("MultiHeadAttention", q, k, v, num_heads=heads), hidden, hidden)

    def model(self, outputs: dict[str, Shape], *, opset: int = 17) -> onnx.ModelProto:
        """Return the model."""
        made = super().model(outputs, opset=opset)
        made.opset_import.append(onnx.helper.make_opsetid(MICROSOFT, 1))
        for node in made.graph.node:
            if node.op_type == "MultiHeadAttention":
                node.domain = MICROSOFT
        return made


def main() -> None:
    """Save the model."""
    file, *options = sys.argv[1:]
    builder = Fused if options == ["--fused"] else Builder
    onnx.save(tiny_transformer(12, 768, 12, tokens="tokens", vocabulary=1000, builder=builder), file)


if __name__ == "__main__":
    main()
