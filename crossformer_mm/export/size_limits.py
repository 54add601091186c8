"""The limits of an ONNX file's image sizes: the file itself refuses what lies outside them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def refuse_other_sizes(model: "ModelProto", name: str, smallest: int, largest: int) -> None:
    """Put a check of the image's height and width in front of a graph, in place.

    ONNX cannot raise errors. But an entry that a list does not have can be asked for, by an
    operator whose name runtimes put into their message.

    Args:
        model: Its graph is for images of changing size, (B, C, H, W).
        name: The graph's input.
        smallest: The least height and width, in pixels.
        largest: The greatest.
    """
    graph = model.graph
    checked = f"{name}_of_allowed_size"
    for node in graph.node:
        for i, used in enumerate(node.input):
            if used == name:
                node.input[i] = checked
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend(_check(graph, name, checked, smallest, largest))
    graph.node.extend(old)


def _check(
    graph: "GraphProto", image: str, checked: str, smallest: int, largest: int
) -> list["NodeProto"]:
    """Nodes that give the image as it is, or fail.

    The image is given its own shape, whose entries 0 to 3 are looked up. For a height that is n
    too small or too large, it is entry 2 + 4 * n instead.
    """
    from onnx import TensorProto
    from onnx.helper import make_node, make_tensor

    nodes = []

    def constant(*values: int) -> str:
        name = f"{checked}_constant_{len(graph.initializer)}"
        shape = [len(values)] if len(values) > 1 else []
        graph.initializer.append(make_tensor(name, TensorProto.INT64, shape, values))
        return name

    def add(kind: str, *inputs: str, **options: object) -> str:
        output = f"{checked}_{len(nodes)}"
        nodes.append(make_node(kind, inputs, [output], **options))
        return output

    shape = add("Shape", image)
    sides = add("Shape", image, start=2)
    clipped = add("Clip", sides, constant(smallest), constant(largest))
    excess = add("Abs", add("Sub", sides, clipped))
    shift = add("Concat", constant(0, 0), add("Mul", excess, constant(4)), axis=0)
    index = add("Add", constant(0, 1, 2, 3), shift)
    message = f"image_height_and_width_must_be_from_{smallest}_to_{largest}_pixels"
    same = add("Gather", shape, index, name=message)
    return [*nodes, make_node("Reshape", [image, same], [checked])]
