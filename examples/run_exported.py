"""Run a model that tools/export.py wrote on images, with numpy, Pillow and a runtime alone.

    python examples/run_exported.py model.onnx photo.jpg --out result.png

A .onnx file is run by onnxruntime, a .xml file by OpenVINO. How images are resized, what the
classes are called and what the outputs mean stands in the file itself.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

TOP = 5  # classes of an image that are named
OPACITY = 0.5  # of what is drawn over an image
INK = dict(fill="white", stroke_width=2, stroke_fill="black")


def start(path: Path, precision: str) -> tuple[Callable, dict, tuple, type]:
    """Start a runtime: a function of images, the file's metadata, and the images it takes."""
    if path.suffix == ".xml":
        import openvino

        model = openvino.Core().read_model(path)
        metadata = dict(model.get_rt_info("crossformer_mm").value)
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": precision})
        names = [next(iter(output.names)) for output in compiled.outputs]
        image = compiled.input(0)
        dtype = image.element_type.to_dtype().type
        return (
            lambda x: dict(zip(names, compiled(x).to_tuple(), strict=True)),
            metadata,
            image.shape,
            dtype,
        )
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    names = [output.name for output in session.get_outputs()]
    image = session.get_inputs()[0]
    dtype = np.uint8 if image.type == "tensor(uint8)" else np.float32
    return (
        lambda x: dict(zip(names, session.run(names, {"image": x}), strict=True)),
        metadata,
        image.shape,
        dtype,
    )


def fit(image: Image.Image, rule: dict) -> tuple[Image.Image, float]:
    """Resize an image to what the model takes; also the factor by which it became larger."""
    size = (rule["width"], rule["height"])
    if rule["mode"] == "crop":  # the short edge, then the centre
        factor = rule["edge"] / min(image.size)
        resized = image.resize(
            [max(rule["edge"], round(s * factor)) for s in image.size], Image.BICUBIC
        )
        left, top = ((a - b) // 2 for a, b in zip(resized.size, size, strict=True))
        return resized.crop((left, top, left + size[0], top + size[1])), factor
    factor = min(size[0] / image.width, size[1] / image.height)
    resized = image.resize([round(s * factor) for s in image.size], Image.BILINEAR)
    canvas = Image.new("RGB", size, tuple(rule["fill"]))
    canvas.paste(resized)
    return canvas, factor


def blend(picture: Image.Image, mask: Image.Image, colour: tuple) -> None:
    """Lay a colour over a picture where a mask is 255."""
    picture.paste(colour, (0, 0), mask.point(lambda value: int(value * OPACITY)))


def draw_detections(picture, found, factor, classes, palette, threshold) -> None:
    """Draw boxes and masks whose score reaches the threshold, and print them."""
    draw = ImageDraw.Draw(picture)
    for index in np.flatnonzero(found["scores"] >= threshold):
        box = (found["boxes"][index] / factor).tolist()
        label, score = int(found["labels"][index]), float(found["scores"][index])
        print(f"{classes[label]} {score:.2f} at {[round(value) for value in box]}")
        if "masks" in found:
            blend(
                picture,
                place_mask(found["masks"][index], box, factor, picture.size),
                palette[label],
            )
        draw.rectangle(box, outline=palette[label], width=2)
        draw.text((box[0] + 3, box[1] + 1), f"{classes[label]} {score:.2f}", **INK)


def place_mask(mask, box, factor, size) -> Image.Image:
    """A mask as an image of the picture's size: pasted ones are cut, others put into their box."""
    if mask.dtype == np.uint8:
        cut = mask[: round(size[1] * factor), : round(size[0] * factor)]
        return Image.fromarray(cut * 255).resize(size, Image.NEAREST)
    left, top, right, bottom = (round(value) for value in box)
    small = Image.fromarray(mask).resize(
        (max(1, right - left), max(1, bottom - top)), Image.BILINEAR
    )
    placed = Image.new("L", size)
    placed.paste(Image.fromarray(((np.asarray(small) >= 0.5) * 255).astype(np.uint8)), (left, top))
    return placed


def draw_segments(picture, found, factor, classes, palette) -> None:
    """Lay the colours of the classes over the picture, and print what share each has."""
    labels = found["labels"][0] if "labels" in found else found["logits"][0].argmax(0)
    labels = labels[: round(picture.height * factor), : round(picture.width * factor)]
    labels = Image.fromarray(labels.astype(np.uint8)).resize(picture.size, Image.NEAREST)
    labels = np.asarray(labels)
    for label in np.unique(labels):
        print(f"{classes[label]}: {(labels == label).mean():.1%} of the image")
        blend(picture, Image.fromarray(((labels == label) * 255).astype(np.uint8)), palette[label])


def main() -> None:
    """Predict, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="file of tools/export.py, .onnx or .xml")
    parser.add_argument("image", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    parser.add_argument("--score-thr", type=float, default=0.3, help="of boxes that are drawn")
    precisions = parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    precisions.help = "of OpenVINO; bf16 where the processor has it"
    args = parser.parse_args()
    try:
        picture = Image.open(args.image).convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise SystemExit(f"error: {args.image} cannot be read as an image: {error}") from error
    run, metadata, shape, dtype = start(args.model, args.precision)
    classes, palette = json.loads(metadata["classes"]), json.loads(metadata["palette"])
    palette = [tuple(colour) for colour in palette]
    fitted, factor = fit(picture, json.loads(metadata["resize"]))
    one = np.asarray(fitted).transpose(2, 0, 1).astype(dtype)
    found = run(np.repeat(one[None], shape[0], axis=0))
    if "counts" in found:  # several images at once: the first of them
        found = {
            name: value[0][: found["counts"][0]] for name, value in found.items() if value.ndim > 1
        }
    if metadata["task"] == "detection":
        draw_detections(picture, found, factor, classes, palette, args.score_thr)
    elif metadata["task"] == "segmentation":
        draw_segments(picture, found, factor, classes, palette)
    else:
        scores = found["scores"][0]
        best = [f"{classes[i]} {scores[i]:.2f}" for i in scores.argsort()[::-1][:TOP]]
        print(*best, sep="\n")
        ImageDraw.Draw(picture).text((4, 2), "\n".join(best), **INK)
    picture.save(args.out)
    print(f"Wrote {args.out}")


if __name__ == "__main__":
    main()
