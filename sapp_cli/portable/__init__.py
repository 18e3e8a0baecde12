"""Models that other runtimes can load: block-sparse layers in standard operators, and the ONNX file they stand in."""
