"""An ONNX graph in, a bundle out."""
