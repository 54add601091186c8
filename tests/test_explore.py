"""The page of tools/explore.py: what it computes, and what a reader sees of it in a browser.

Tests with the mark `browser` run in Debian's Chromium, which `.ci/run` installs.
"""

import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NANO_CONFIG, ROOT, SMALL_ARCH, tool_main
from PIL import Image
from reference import reference_groups
from test_bad_data import CONFIG_OF

from crossformer_mm import CrossFormer
from crossformer_mm.engine.config import load_config
from crossformer_mm.models.build import build_model
from crossformer_mm.visualization.attention import (
    RULES,
    attention_of_token,
    bias_table,
    group_of_token,
    record,
)
from crossformer_mm.visualization.explorer import (
    OTHER_RULE,
    TAKES,
    Explorer,
    Place,
    Side,
    describe,
    numbers,
    save,
)
from crossformer_mm.visualization.inputs import build_backbone, read_image

TOOL = ROOT / "tools/explore.py"
# Chromium does what it is told to and no more.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
NOTE_CONNECTIONS = """
import sys
def note(event, args):
    if event in ("socket.connect", "socket.getaddrinfo"):
        print(args[1] if event == "socket.connect" else args[:2], file=open({log!r}, "a"))
sys.addaudithook(note)
"""
HOSTILE_NAME = "<img src=x onerror=document.title='ran'>.png"


@pytest.fixture(scope="session")
def files(tmp_path_factory, toy_coco) -> dict[str, Path]:
    """Checkpoints of random weights, the second with others, and images, some of them unusable."""
    folder = tmp_path_factory.mktemp("explore")
    for seed, name in enumerate(("one.pth", "other.pth")):
        torch.manual_seed(seed)
        weights = build_model(load_config(str(NANO_CONFIG))).state_dict()
        for parameter in weights.values():  # so that attention is far from uniform
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
        torch.save(dict(state_dict=weights), folder / name)
    torch.save(CrossFormer(SMALL_ARCH).state_dict(), folder / "unfit.pth")
    (folder / HOSTILE_NAME).write_bytes(b"not an image")
    Image.new("RGB", (1, 3000)).save(folder / "thin.png")
    images = sorted(toy_coco.glob("val2017/*.jpg"))[:2]
    found = {path.stem: path for path in folder.iterdir()}
    return {**found, "hostile": folder / HOSTILE_NAME, "first": images[0], "second": images[1]}


@pytest.fixture(scope="session")
def explorer() -> Explorer:
    return Explorer(load_config(str(NANO_CONFIG)))


def members_of(token: tuple[int, int], *rule: object) -> set[tuple[int, int]]:
    """The tokens of a token's group, by the definition."""
    groups = [{place for place, _ in group} for group in reference_groups(*rule)]
    return next(group for group in groups if token in group)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stage", [0, 1])
def test_a_layer_under_another_rule(explorer, files, rule, stage):
    """Its attention gives what the layer computes, when it is called with those groups."""
    side = Side(str(files["one"]), rule, group_size=5, interval=3)
    look = explorer.look(side, Place(str(files["first"]), (100, 37), stage, 0, 0))
    stride = 4 * 2**stage
    token = 100 // stride, 37 // stride
    size = look.call.x.shape[1:3]
    kind, _, mode = rule.partition(" ")
    expected = members_of(token, *size, 5, 3, mode or "fixed_interval", kind == "LDA")
    found = numbers(look)
    assert set(map(tuple, np.argwhere(found["group"]))) == expected
    layer, x = look.call.layer, look.call.x
    with torch.no_grad():
        value = layer.qkv(x[0]).unflatten(-1, (3, layer.num_heads, -1))[..., 2, :, :]
        attended = torch.einsum("hyx,yxhc->hc", torch.from_numpy(found["attention"]), value)
        expected = layer(x, look.call.plan)[0][token]
        assert torch.allclose(layer.proj(attended.flatten()), expected, atol=1e-4)
        assert expected.std() > 1e-2
    said = describe(look)
    assert f"row {token[0]}, column {token[1]} of {size[0]} x {size[1]}, each {stride} x" in said
    assert f"Its group: {int(found['group'].sum())} tokens, " in said
    assert OTHER_RULE in said


def test_the_models_own_rule_is_its_backbones(explorer, files):
    backbone, _ = explorer.build_backbone(str(files["one"]))
    for stage, block in ((0, 0), (2, 0), (2, 1)):
        place = Place(str(files["first"]), None, stage, block, 0)
        look = explorer.look(Side(str(files["one"])), place)
        assert (look.call.stage, look.call.block, look.has_own_groups) == (stage, block, True)
        own = backbone.layers[stage].blocks[block]
        rule = own.group_size, own.interval, own.lda_mode, own.long_distance
        expected = members_of(look.token, *look.call.x.shape[1:3], *rule)
        assert set(map(tuple, np.argwhere(numbers(look)["group"]))) == expected
        assert OTHER_RULE not in describe(look)


def test_the_network_runs_once_for_all_clicks(files, monkeypatch):
    explorer, runs = Explorer(load_config(str(NANO_CONFIG))), []
    run = CrossFormer.forward
    monkeypatch.setattr(CrossFormer, "forward", lambda *args: runs.append(1) or run(*args))
    pictures = set()
    for pixel, head in (((0, 0), 0), ((90, 120), 0), ((90, 120), 1)):
        side = Side(str(files["one"]))
        picture = explorer.draw(side, Place(str(files["first"]), pixel, 1, 0, head))
        assert picture.ndim == 3 and picture.dtype == np.uint8
        pictures.add(picture.tobytes())
    assert len(runs) == 1 and len(pictures) == 3


@pytest.mark.parametrize("rule", RULES)
def test_a_slider_moves_what_its_rule_takes(explorer, files, rule):
    place = Place(str(files["first"]), (100, 37), 0, 0, 0)

    def group(group_size: int, interval: int) -> bytes:
        side = Side(str(files["one"]), rule, group_size, interval)
        return numbers(explorer.look(side, place))["group"].tobytes()

    assert ("group_size" in TAKES[rule]) == (group(5, 3) != group(6, 3))
    assert ("interval" in TAKES[rule]) == (group(5, 3) != group(5, 4))


@pytest.mark.parametrize("task", CONFIG_OF)
def test_predictions_of_every_task(task, files, tmp_path):
    cfg = load_config(str(CONFIG_OF[task]))
    torch.save(build_model(cfg).state_dict(), tmp_path / "some.pth")
    explorer = Explorer(cfg)
    for _ in range(2):  # what the inferencer changes in the config changes nothing here
        explorer.look(Side(str(tmp_path / "some.pth")), Place(str(files["first"]), None, 2, 0, 0))
        explorer.record.cache_clear()
        explorer.read_image.cache_clear()
        picture = explorer.predict(str(tmp_path / "some.pth"), str(files["first"]))
        assert picture.dtype == np.uint8 and picture.shape[2] == 3


def check_numbers(file: str, checkpoint: Path, image: Path, stage: int, block: int, token) -> None:
    """Compare with what the functions behind tools/visualize.py find."""
    cfg = load_config(str(NANO_CONFIG))
    backbone, _ = build_backbone(cfg, str(checkpoint))
    recording = record(backbone, read_image(str(image), cfg)[1])
    (call,) = [c for c in recording.calls if (c.stage, c.block) == (stage, block)]
    with np.load(file) as found:
        assert (found["stage"], found["block"]) == (stage, block)
        assert tuple(found["token"]) == token and found["interval"] == call.plan.interval
        assert np.array_equal(found["group"], group_of_token(call.plan, token))
        for name, expected in (
            ("attention", attention_of_token(call, token)),
            ("bias", bias_table(call)),
            ("stage_map", recording.stage_maps[stage][0].permute(2, 0, 1)),
        ):
            np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)


def test_files_have_the_picture_and_its_numbers(explorer, files, tmp_path):
    side, place = Side(str(files["one"])), Place(str(files["first"]), (50, 60), 2, 1, 3)
    written = save(explorer, side, place, tmp_path, "left")
    assert [Path(file).name for file in written] == [
        f"left-one-stage2-block1-head3-token3x3.{kind}" for kind in ("png", "npz")
    ]
    with Image.open(written[0]) as picture:
        assert np.array_equal(np.asarray(picture), explorer.draw(side, place))
    check_numbers(written[1], files["one"], files["first"], 2, 1, (3, 3))


@pytest.mark.fault("demo, visualize, explore")
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["no.py", "{one}"], "config no.py does not exist"),
        ([NANO_CONFIG, "no.pth"], "checkpoint no.pth does not exist"),
        ([NANO_CONFIG, "{unfit}"], "unfit.pth"),
        ([NANO_CONFIG, TOOL], "is not a PyTorch or safetensors checkpoint"),
        ([NANO_CONFIG, "{one}", "no*.jpg"], "no*.jpg: no image is found there"),
        ([NANO_CONFIG, "{one}", "--shape", 16, 64], "--shape 16 64: give at least 32"),
    ],
)
def test_a_wrong_argument_is_named_in_one_line(files, monkeypatch, arguments, named):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(SystemExit, match=rf"^error: .*{re.escape(named)}.*\Z"):
        tool_main(TOOL, *(str(argument).format(**files) for argument in arguments))


def test_without_gradio_the_tool_says_what_to_install(files, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"^error: .*pip install 'crossformer_mm\[explore\]'\Z"):
        tool_main(TOOL, NANO_CONFIG, files["one"])


@pytest.fixture(scope="module")
def url(files, tmp_path_factory):
    """Where the tool serves its page; at the end it has connected to this machine only."""
    folder = tmp_path_factory.mktemp("server")
    connections, errors = folder / "connections.txt", folder / "errors.txt"
    (folder / "sitecustomize.py").write_text(NOTE_CONNECTIONS.format(log=str(connections)))
    env = {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "HTTP_PROXY": "http://192.0.2.1:9"}
    images = [files[name] for name in ("first", "second", "hostile")]
    command = [sys.executable, TOOL, NANO_CONFIG, files["one"], *images]
    with socket.socket() as free, errors.open("w") as log:
        free.bind(("127.0.0.1", 0))
        command += ["--port", str(free.getsockname()[1])]
        free.close()
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    opened = re.search(r"Open (http://127\.0\.0\.1:\d+/)", server.stdout.readline())
    assert opened, errors.read_text()
    yield opened[1]
    server.send_signal(signal.SIGINT)
    assert server.wait(60) == 130
    assert "Traceback" not in errors.read_text()
    for connection in connections.read_text().splitlines():
        assert "127.0.0.1" in connection or "localhost" in connection, connection


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = dict(executable_path="/usr/bin/chromium", args=QUIET)
        folder = tmp_path_factory.mktemp("chromium")
        context = playwright.chromium.launch_persistent_context(folder, **options)
        context.set_default_timeout(60_000)
        yield context
        context.close()


@pytest.fixture
def page(browser, url):
    """The page as it opens; at the end it has asked the tool only."""
    from playwright.sync_api import expect

    expect.set_options(timeout=60_000)
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(url)
    expect(page.locator("#side0 .predicted img")).to_be_visible()
    yield page
    page.close()
    assert asked and all(address.startswith((url, "data:", "blob:")) for address in asked)


def expect_text(page, place: str, text: str) -> None:
    from playwright.sync_api import expect

    expect(page.locator(place)).to_contain_text(text)


def choose(page, place: str, option: str) -> None:
    page.locator(f"{place} input").first.click()
    page.get_by_role("option", name=option, exact=True).click()


def load_checkpoint(page, side: int, file: Path) -> None:
    box = page.locator(f"#side{side} .checkpoint textarea, #side{side} .checkpoint input")
    box.fill(str(file))
    box.press("Enter")


def click_pixel(page, row: int, column: int) -> None:
    image = page.locator("#picture img")
    box, width = image.bounding_box(), image.evaluate("image => image.naturalWidth")
    scale = box["width"] / width
    image.click(position=dict(x=(column + 0.5) * scale, y=(row + 0.5) * scale))


def drawn_in(page, side: int) -> np.ndarray:
    source = page.locator(f"#side{side} .drawn img").get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(source).body())) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.browser
def test_a_click_and_a_slider_show_what_was_asked_for(page, explorer, files):
    click_pixel(page, 100, 37)
    expect_text(page, "#side0 .prose.said", "Pixel: row 100, column 37. Token: row 6, column 2 of ")
    backbone, _ = explorer.build_backbone(str(files["one"]))
    block, shape = backbone.layers[2].blocks[1], explorer.read_image(str(files["first"]))[0].shape
    size = -(-shape[0] // 16), -(-shape[1] // 16)
    own = members_of((6, 2), *size, block.group_size, block.interval, block.lda_mode, True)
    expect_text(page, "#side0 .prose.said", f"Its group: {len(own)} tokens")
    place = Place(str(files["first"]), (100, 37), 2, 1, 0)
    assert np.array_equal(drawn_in(page, 0), explorer.draw(Side(str(files["one"])), place))
    choose(page, "#side0 .rule", "LDA fixed_group")
    expect_text(page, "#side0 .prose.said", OTHER_RULE)
    slider = page.locator("#side0 .group_size input[type=range]")
    for group_size in range(block.group_size - 1, 1, -1):
        slider.press("ArrowLeft")
        group = members_of((6, 2), *size, group_size, block.interval, "fixed_group", True)
        full = f"at most {group_size} x {group_size}."
        expect_text(page, "#side0 .prose.said", f"Its group: {len(group)} tokens")
        expect_text(page, "#side0 .prose.said", full)
    assert len(group) == 4
    for typed, group_size in (("0", 1), ("40", 16), ("2.6", 2)):
        page.locator("#side0 .group_size input[type=number]").fill(typed)
        page.keyboard.press("Tab")
        expect_text(page, "#side0 .prose.said", f"at most {group_size} x {group_size}.")
    choose(page, "#stage", "1")
    expect_text(page, "#side0 .prose.said", "Token: row 12, column 4 of ")
    side, place = Side(str(files["one"]), "LDA fixed_group", 2, 2), place._replace(stage=1, block=0)
    assert np.array_equal(drawn_in(page, 0), explorer.draw(side, place))


@pytest.mark.browser
def test_the_page_goes_on_after_images_that_cannot_be_used(page, explorer, files):
    choose(page, "#image", f"{files['hostile'].parent.name}/{HOSTILE_NAME}")
    for box in (".prose.said", ".prose.failed"):
        expect_text(page, f"#side0 {box}", "Cannot be shown: ")
        expect_text(page, f"#side0 {box}", HOSTILE_NAME)
    with page.expect_file_chooser() as chooser:
        page.locator("#upload").click()
    chooser.value.set_files(files["thin"])
    expect_text(page, "#side0 .prose.said", "thin.png")
    page.locator("#make").click()
    expect_text(page, ".toast-wrap", "thin.png")
    assert page.title() == "Inside a CrossFormer"
    choose(page, "#image", "/".join(files["second"].parts[-2:]))
    expect_text(page, "#side0 .prose.said", "Its group: ")
    place = Place(str(files["second"]), None, 2, 1, 0)
    assert np.array_equal(drawn_in(page, 0), explorer.draw(Side(str(files["one"])), place))


@pytest.mark.browser
def test_two_checkpoints_side_by_side_and_one_that_does_not_fit(page, explorer, files):
    page.locator("#compare input").click()
    expect_text(page, "#side1 .prose.said", "Its group: ")
    place = Place(str(files["first"]), None, 2, 1, 0)
    for name in ("unfit", "missing"):
        load_checkpoint(page, 1, files["one"].with_stem(name))
        for box in (".prose.said", ".prose.failed"):
            expect_text(page, f"#side1 {box}", f"{name}.pth")
    load_checkpoint(page, 1, files["other"])
    expect_text(page, "#side1 .prose.said", "Its group: ")
    for side, name in enumerate(("one", "other")):
        expected = explorer.draw(Side(str(files[name])), place)
        assert np.array_equal(drawn_in(page, side), expected)
    assert not np.array_equal(drawn_in(page, 0), drawn_in(page, 1))


@pytest.mark.browser
def test_pictures_and_numbers_are_downloaded(page, explorer, files, tmp_path):
    click_pixel(page, 20, 70)
    expect_text(page, "#side0 .prose.said", "Pixel: row 20, column 70.")
    page.locator("#make").click()
    for kind in ("png", "npz"):
        with page.expect_download() as download:
            page.locator(f"#files a[download$='.{kind}']").first.click()
        download.value.save_as(tmp_path / f"numbers.{kind}")
        assert download.value.suggested_filename == f"one-stage2-block1-head0-token1x4.{kind}"
    check_numbers(str(tmp_path / "numbers.npz"), files["one"], files["first"], 2, 1, (1, 4))
    place = Place(str(files["first"]), (20, 70), 2, 1, 0)
    with Image.open(tmp_path / "numbers.png") as picture:
        assert np.array_equal(np.asarray(picture), explorer.draw(Side(str(files["one"])), place))


@pytest.mark.browser
def test_no_file_of_the_machine_is_served(page, url, files):
    for path in ("/etc/hosts", TOOL, files["one"], files["first"]):
        assert page.request.get(f"{url}gradio_api/file={path}").status in (403, 404), path


@pytest.mark.browser
def test_a_port_that_is_taken_is_named_in_one_line(url, files, run_tool):
    port = url.strip("/").rpartition(":")[2]
    result = run_tool(sys.executable, TOOL, NANO_CONFIG, files["one"], "--port", port, check=False)
    *_, last = result.stdout.splitlines()
    assert result.returncode == 1 and last.startswith("error: ") and port in last
    assert "Traceback" not in result.stdout
