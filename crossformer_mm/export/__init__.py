"""Models as ONNX files, and backbones as programs of torch.export."""
