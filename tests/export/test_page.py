"""``adder-zoo export --format page``: the page in headless Chromium gives the integers of Python, and calls nobody."""

import json
import math
import re
import warnings

import browser as chromium
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw

import adder_zoo
from adder_zoo.cli import main
from adder_zoo.page import folder as page_folder
from adder_zoo.page.describe import costs, describe

SEVEN = [[(0.28, 0.25), (0.72, 0.25), (0.45, 0.8)]]
ONE = [[(0.5, 0.2), (0.5, 0.8)]]
ZERO = [[(0.5 + 0.2 * math.sin(a / 4), 0.5 - 0.3 * math.cos(a / 4)) for a in range(26)]]


def quantised(name, pixels):
    """A shipped network in bytes, and its integers."""
    model = timm.create_model(name, pretrained=True).eval()
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(-1, 1, 1) for key in ("mean", "std"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="quantize: these adder layers stay float32")
        small = adder_zoo.quantize(model, (pixels.permute(0, 3, 1, 2) / 255 - mean) / std)
    return model, adder_zoo.to_integers(small, pixels, multiplier_free=True)


def lines(count=16, size=32):
    """White lines on black, in the place of digits."""
    generator = torch.Generator().manual_seed(0)
    images = []
    for _ in range(count):
        image = Image.new("L", (size, size))
        ends = (torch.rand(4, generator=generator) * size).tolist()
        ImageDraw.Draw(image).line(ends, fill=255, width=3)
        images.append(torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(size, size, 1))
    return torch.stack(images)


def described(name, pixels):
    model, integers = quantised(name, pixels)
    return integers, describe(name, model, integers, pixels)


@pytest.fixture(scope="module")
def opened():
    with chromium.browser() as started:
        yield started


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A page with LeNet-5-BN, whose ranges are of lines, and its integers."""
    chromium.needs_chromium()
    folder = tmp_path_factory.mktemp("page")
    integers, network = described("adder_lenet5_bn.mnist", lines())
    page_folder.write_page(folder, [network])
    return folder, integers


def as_python_sees(path, channels, size, interpolation):
    """A picture resized and cut out by PIL, uint8 [1, H, W, C]."""
    model = timm.create_model("adder_lenet5_bn" if channels == 1 else "adder_resnet20")
    config = {
        **timm.data.resolve_data_config(model=model),
        "interpolation": interpolation,
        "input_size": (1, size, size),
    }
    config |= {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    image = Image.open(path).convert("L" if channels == 1 else "RGB")
    seen = timm.data.create_transform(**config, is_training=False)(image)
    return (seen * 255).round().to(torch.uint8).permute(1, 2, 0)[None].contiguous()


def assert_equal_to_python(page, integers, pixels):
    rgba = torch.tensor(page.seen(), dtype=torch.uint8).view(*pixels.shape[1:3], 4)
    assert torch.equal(rgba[..., : pixels.shape[3]], pixels[0])
    assert page.logits() == integers(pixels)[0].tolist()


def test_a_drawing_and_a_file_get_the_integers_of_python(opened, digits, tmp_path):
    folder, integers = digits
    noise = torch.randint(0, 128, (61, 43), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    noise[0], noise[-1] = 0, 0
    Image.fromarray(noise.numpy()).save(tmp_path / "picture.png")
    with chromium.Opened(opened, folder) as page:
        assert "Draw a digit" in page.verdict()
        page.draw(*SEVEN)
        assert page.best() == "7"
        assert page.milliseconds() < 100
        seen = torch.tensor(page.seen(), dtype=torch.uint8).view(1, 32, 32, 4)[..., :1]
        assert page.logits() == integers(seen)[0].tolist()
        page.choose(tmp_path / "picture.png")
        assert_equal_to_python(page, integers, as_python_sees(tmp_path / "picture.png", 1, 32, "bilinear"))


@pytest.mark.slow
@pytest.mark.parametrize(("digit", "strokes"), [("7", SEVEN), ("1", ONE), ("0", ZERO)])
@pytest.mark.parametrize("scale", [1, 0.4])
def test_drawings_of_any_size_are_read(opened, digits, digit, strokes, scale):
    small = [[(0.1 + scale * x * 0.9, 0.05 + scale * y * 0.9) for x, y in stroke] for stroke in strokes]
    with chromium.Opened(opened, digits[0]) as page:
        page.draw(*small)
        assert page.best() == digit
        page.page.locator("#clear").click()
        assert "Draw a digit" in page.verdict()


@pytest.mark.slow
def test_too_small_and_unsure_are_said(opened, digits):
    with chromium.Opened(opened, digits[0]) as page:
        page.draw([(0.5, 0.5), (0.52, 0.5)])
        assert "Draw larger" in page.verdict()
        page.page.locator("#undo").click()
        assert "Draw a digit" in page.verdict()
        said = set()
        for seed in range(12):  # scribbles, of which it cannot be sure
            points = torch.rand(5, 2, generator=torch.Generator().manual_seed(seed)).tolist()
            page.page.locator("#stage").press("Delete")
            page.draw([(0.1 + 0.8 * x, 0.1 + 0.8 * y) for x, y in points])
            share = float(page.page.locator("#classes .best td:last-child").inner_text().strip("<> %"))
            assert ("Not sure" in page.verdict()) == (share < 60)
            said.add(share < 60)
        assert said == {False, True}


@pytest.mark.slow
def test_keys_alone_draw_a_one(opened, digits):
    """From the top of the page by Tab, with a ring around what has the focus."""
    ring = "() => [document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
    with chromium.Opened(opened, digits[0]) as page:
        keys, reached = page.page.keyboard, []
        for _ in range(30):
            keys.press("Tab")
            name, outline = page.page.evaluate(ring)
            reached.append(name)
            if name == "stage":
                assert outline == "solid"
                break
        assert reached[-1] == "stage"
        for _ in range(5):
            keys.press("ArrowUp")
        keys.press("Space")
        for _ in range(10):
            keys.press("ArrowDown")
        keys.press("Space")
        page.page.wait_for_function("document.querySelector('#verdict b')?.textContent === '1'")
        keys.press("ArrowRight")
        assert page.best() == "1"
        keys.press("Backspace")
        page.page.wait_for_function("!document.querySelector('#verdict b')")
        for control in ("clear", "undo", "file"):
            page.page.locator(f"#{control}").focus()
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("Example")
        keys.press("Enter")
        page.page.wait_for_function("document.querySelector('#verdict b')")


CONTRAST = """() => {
  const channel = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = (color) => { const [r, g, b] = color.match(/[\\d.]+/g).map(Number).map(channel);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const back = (node) => { for (; node; node = node.parentElement) {
    const color = getComputedStyle(node).backgroundColor; if (!/, 0\\)|transparent/.test(color)) return color; } };
  const texts = Array.from(document.querySelectorAll('h1, h2, h3, p, b, small, td, th, a, code, button, .button'))
    .filter((node) => node.offsetParent && node.textContent.trim() && !node.disabled);
  return texts.map((node) => { const [a, b] = [light(getComputedStyle(node).color), light(back(node))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), node.outerHTML.slice(0, 80)]; });
}"""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 800, 1400])
def test_narrow_and_wide_light_and_dark(opened, digits, width, scheme):
    with chromium.Opened(opened, digits[0], width=width, scheme=scheme, has_touch=True) as page:
        page.draw(*SEVEN)
        assert page.page.evaluate("document.documentElement.scrollWidth") <= width
        back = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", back))) < 300) == (scheme == "dark")
        found = page.page.evaluate(CONTRAST)
        assert len(found) > 40
        assert [text for ratio, text in found if ratio < 4.5] == []
        unnamed = page.page.evaluate(
            "Array.from(document.querySelectorAll('button, input, canvas:not([aria-hidden])'))"
            ".filter(n => !(n.getAttribute('aria-label') || n.textContent.trim() || n.labels?.length))"
            ".map(n => n.outerHTML)"
        )
        assert unnamed == []


@pytest.mark.slow
def test_a_photograph_of_a_digit_and_what_is_not_a_picture(opened, digits, tmp_path):
    image = Image.new("L", (300, 200), 230)
    ImageDraw.Draw(image).line([(110, 60), (170, 60), (130, 150)], fill=40, width=12)
    image.save(tmp_path / "seven.jpg")
    Image.new("L", (100, 100), 200).save(tmp_path / "empty.png")
    (tmp_path / "text.png").write_text("not a picture")
    with chromium.Opened(opened, digits[0]) as page:
        page.choose(tmp_path / "seven.jpg")
        assert page.best() == "7"
        note = page.page.locator("#input-note")
        assert "white on black" in note.inner_text()
        page.choose(tmp_path / "empty.png")
        assert "no digit to be seen" in note.inner_text()
        page.page.locator("#file").set_input_files(tmp_path / "text.png")
        page.page.wait_for_function("document.getElementById('input-note').textContent.includes('not a picture')")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dataset"), [("adder_lenet5_bn.mnist", "mnist"), ("adder_resnet20.cifar10", "cifar10")]
)
def test_images_of_the_test_sets(opened, name, dataset, data_dir, tmp_path):
    """Fifty files through the chooser: what the network sees, and its logits, are Python's."""
    from integer_images import raw, read

    pixels, _ = read(dataset, "train", data_dir, 256)
    integers, network = described(name, pixels)
    page_folder.write_page(tmp_path / "page", [network])
    images, labels = raw(dataset, "test", data_dir, 50)
    right = 0
    with chromium.Opened(opened, tmp_path / "page") as page:
        for i, image in enumerate(images.numpy()):
            path = tmp_path / f"{i}.png"
            Image.fromarray(image if image.ndim == 2 else image.transpose(1, 2, 0)).save(path)
            page.choose(path)
            assert_equal_to_python(
                page, integers, as_python_sees(path, network["image"][2], 32, network["interpolation"])
            )
            right += page.best() == network["classes"][labels[i]]
        assert page.milliseconds() < 100
    assert right >= (49 if dataset == "mnist" else 42)


@pytest.mark.slow
def test_large_pictures_are_resized_as_by_pil(opened, tmp_path):
    chromium.needs_chromium()
    pixels = torch.randint(0, 256, (16, 32, 32, 3), dtype=torch.uint8)
    integers, network = described("adder_resnet20.cifar10", pixels)
    page_folder.write_page(tmp_path / "page", [network])
    with chromium.Opened(opened, tmp_path / "page") as page:
        for number, size in enumerate([(57, 83), (300, 201), (32, 45), (20, 20), (333, 1025)]):
            path = tmp_path / f"{number}.png"
            Image.fromarray(torch.randint(0, 256, (*size, 3), dtype=torch.uint8).numpy()).save(path)
            page.choose(path)
            assert_equal_to_python(page, integers, as_python_sees(path, 3, 32, "bicubic"))
        tall = Image.fromarray(torch.randint(0, 256, (1025, 333, 3), dtype=torch.uint8).numpy())
        tall.save(tmp_path / "tall.png")
        rows = tall.resize((32, 1025), Image.Resampling.BICUBIC)
        rows.resize((32, 98), Image.Resampling.BICUBIC).save(tmp_path / "rows_first.png")
        page.choose(tmp_path / "tall.png")
        assert_equal_to_python(page, integers, as_python_sees(tmp_path / "rows_first.png", 3, 32, "bicubic"))


# ---- the folder and the command


@pytest.mark.parametrize("name", ["adder_lenet5_bn", "adder_resnet20", "adder_resnet20.cifar10_int8"])
def test_costs_are_those_of_the_networks_own_report(name):
    with torch.device("meta"):
        arch = name.partition(".")[0]
        found = costs(timm.create_model(name))
        for key, similarity in (("ours", "adder"), ("twin", "conv")):
            count = adder_zoo.report(timm.create_model(arch, similarity=similarity)).without_norm
            assert found[key]["multiplications"] == count.multiplications
            assert found[key]["additions"] == count.additions
            assert found[key]["fp32"] == count.energy()
            assert found[key]["int8"] == count.energy("int8", "int32")


def stand_in(name, **changes):
    """What ``describe`` gives, without a network."""
    cost = {"multiplications": 1, "additions": 2, "fp32": 3.0, "int8": 4.0}
    return {"name": name, "license": "apache-2.0", "costs": {"ours": cost, "twin": cost}, **changes}


def test_a_second_network_is_put_beside_the_first(tmp_path):
    odd = "</script><!--"
    page_folder.write_page(tmp_path, [stand_in("one", classes=[odd])])
    card = tmp_path / "README.md"
    card.write_text(card.read_text().replace("title: Networks without multiplications", "title: Mine") + "\nBy hand.\n")
    (tmp_path / "mine.txt").write_text("mine")
    page_folder.add_to_page(tmp_path, stand_in("two"))
    page_folder.add_to_page(tmp_path, stand_in("one", classes=["b"]))
    assert [(n["name"], n.get("classes")) for n in page_folder.networks_of(tmp_path)] == [("one", ["b"]), ("two", None)]
    assert "title: Mine" in card.read_text()
    assert "By hand." in card.read_text()
    assert "| two | 1 | 2 | 3 µJ | 3 µJ |" in card.read_text()
    assert (tmp_path / "mine.txt").read_text() == "mine"
    page_folder.write_page(tmp_path / "odd", [stand_in("one", classes=[odd])])
    assert page_folder.networks_of(tmp_path / "odd")[0]["classes"] == [odd]


def test_the_page_has_a_policy_and_names_nothing_elsewhere(tmp_path):
    page_folder.write_page(tmp_path, [stand_in("one")])
    text = (tmp_path / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert "'unsafe-eval'" not in policy
    assert not re.search(r'\b(src|srcset)="|url\(|@import|fetch\(|XMLHttpRequest|\bstyle="| on[a-z]+="', text)
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {
        "https://arxiv.org/abs/1912.13200",
        "http://www.w3.org/2000/svg",
    }


def command(*args, code=0):
    result = CliRunner().invoke(main, ["export", *map(str, args)])
    assert result.exit_code == code, result.output
    return result


def test_the_command(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for number, image in enumerate(lines(8, 28)):
        Image.fromarray(image[..., 0].numpy()).save(tmp_path / f"data/{number}.png")
    options = ("--format", "page", "--data-dir", tmp_path / "data")
    model, page = "adder_lenet5_bn.mnist", tmp_path / "page"
    monkeypatch.setattr("adder_zoo.page.describe.compiled", lambda integers: b"wasm")
    monkeypatch.setattr("adder_zoo.page.wasm.check_compiler", lambda: None)
    assert "holds no page" in command(model, "-o", page, *options, "--add", code=1).stderr
    assert json.loads(command(model, "-o", page, *options, "--json").stdout)["networks"] == [model]
    assert "is not empty" in command(model, "-o", page, *options, code=1).stderr
    both = command("adder_lenet5_bn.fashion_mnist", "-o", page, *options, "--add", "--json").stdout
    assert json.loads(both)["networks"] == [model, "adder_lenet5_bn.fashion_mnist"]
    assert [network["draws"] for network in page_folder.networks_of(page)] == [True, False]
    assert "goes with --format page" in command(model, "-o", "x", "--format", "c", "--add", code=2).stderr
    assert "give --data-dir" in command(model, "-o", tmp_path / "new", "--format", "page", code=1).stderr


def test_a_missing_compiler_is_named_with_its_package(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda program: None)
    said = command("adder_lenet5_bn.mnist", "-o", tmp_path / "page", "--format", "page", code=1).stderr
    assert "lacks clang and wasm-ld" in said
    assert "apt-get install clang lld" in said


def test_images_that_the_page_cannot_prepare_are_refused():
    model, integers = quantised("adder_lenet5_bn.mnist", lines())
    model.pretrained_cfg = {**model.pretrained_cfg, "crop_mode": "border", "interpolation": "lanczos"}
    with pytest.raises(ValueError, match="the page resizes the shorter side"):
        describe("one", model, integers, lines())
