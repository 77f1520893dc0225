"""Weights of other codes: every form gives the same model, any attack can be tried, and no code in a file runs."""

import argparse
import json
import pickle
import shutil

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

import otclib
from otclib import attacks, evaluation, models
from otclib.cli import app
from otclib.data import grammar
from otclib.evaluation import attack_success
from otclib.models.checkpoints import fitting, shapes
from otclib.runs import metrics_of

TINY = {  # OpenAI's residual network, with one block a stage
    "embed_dim": 16,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}
NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def openai_names() -> set[str]:
    """The names of the weights in OpenAI's code, which CleanCLIP, RoCLIP and SafeCLIP copied, for ``TINY``."""
    stem = {f"conv{k}.weight" for k in (1, 2, 3)} | {f"bn{k}.{part}" for k in (1, 2, 3) for part in NORM}
    shortcut = {"downsample.0.weight"} | {f"downsample.1.{part}" for part in NORM}
    block = stem | shortcut
    pool = {f"{x}_proj.{part}" for x in "kqvc" for part in ("weight", "bias")} | {"positional_embedding"}
    image = stem | {f"layer{k}.0.{name}" for k in (1, 2, 3, 4) for name in block} | {f"attnpool.{n}" for n in pool}
    ends = ("weight", "bias")
    text = {f"{layer}.{end}" for layer in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj", "attn.out_proj") for end in ends}
    text |= {"attn.in_proj_weight", "attn.in_proj_bias"}
    top = {"positional_embedding", "text_projection", "logit_scale", "token_embedding.weight"}
    top |= {"ln_final.weight", "ln_final.bias"}
    return {f"visual.{n}" for n in image} | {f"transformer.resblocks.0.{n}" for n in text} | top


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    for name, quick in (("tiny-rn-quickgelu", True), ("tiny-rn", False)):
        (folder / f"{name}.json").write_text(json.dumps(TINY | {"quick_gelu": quick}))
    open_clip.add_model_config(folder)
    torch.manual_seed(3)
    model = open_clip.create_model("tiny-rn-quickgelu")
    for module in model.visual.modules():  # as trained: open_clip's start answers all images alike
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            module.running_mean.normal_(std=0.1), module.running_var.uniform_(0.5, 1)
    return model.eval()


def cleanclip(model) -> dict:
    """What its training writes after an epoch: names of parallel training, and AdamW with NumPy's learning rates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.logit_scale.grad = torch.ones([])
    optimizer.step(), optimizer.zero_grad()
    for group in optimizer.param_groups:
        group["lr"] = 0.5 * (1 + np.cos(np.pi * 3 / 7)) * 5e-4
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    return {"epoch": 3, "name": "nodefence", "state_dict": state, "optimizer": optimizer.state_dict()}


FORMS = ("cleanclip", "legacy", "open_clip", "half", ".pt", ".pth", ".bin", ".safetensors", "arguments")


def write(model, form, folder):
    file = folder / (f"weights{form}" if form.startswith(".") else "epoch_3.pt")
    checkpoint, state = cleanclip(model), model.state_dict()
    if form == ".safetensors":
        save_file(state, file)
    elif form == "legacy":
        torch.save(checkpoint, file, _use_new_zipfile_serialization=False)
    elif form == "half":
        torch.save({name: value.half() if value.is_floating_point() else value for name, value in state.items()}, file)
    elif form == "open_clip":
        torch.save(checkpoint | {"state_dict": state, "scaler": {"scale": 65536.0, "growth_tracker": 3}}, file)
    elif form == "arguments":
        torch.save(checkpoint | {"args": argparse.Namespace(lr=1e-3, layers=[1, 2]), "loss": np.float32(2)}, file)
    else:
        torch.save(checkpoint if form == "cleanclip" else state, file)
    return file


def test_the_names_of_the_weights_are_those_of_openai(tiny):
    assert set(tiny.state_dict()) == openai_names()


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_every_form_gives_the_same_model(form, tiny, tmp_path):
    file = write(tiny, form, tmp_path)
    model = models.load(f"tiny-rn-quickgelu:{file}")[0]
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    words = open_clip.get_tokenizer("tiny-rn-quickgelu")(["a red star", "a moon"])
    near = {"atol": 2e-3, "rtol": 2e-2} if form == "half" else {"atol": 1e-6, "rtol": 1e-5}
    assert tiny.encode_image(images).std(0).min() > 1e-4, "images differ"
    torch.testing.assert_close(model.encode_image(images), tiny.encode_image(images), **near)
    torch.testing.assert_close(model.encode_text(words), tiny.encode_text(words), **near)
    gelu = models.load(f"tiny-rn:{file}")[0].encode_text(words)
    assert not torch.allclose(gelu, tiny.encode_text(words), atol=1e-3), "the name says which activation"


def test_a_file_that_names_no_model_says_what_it_could_be(tiny, tmp_path):
    file = write(tiny, "cleanclip", tmp_path)
    with pytest.raises(
        ValueError, match="does not say which model.*of tiny-rn and tiny-rn-quickgelu; -quickgelu is Op"
    ):
        otclib.evaluate(file, test=otclib.data.load("scenes", split="test", size=4))
    with pytest.raises(ValueError, match="epoch_3.pt holds no ViT-B-32: its weights have the shapes of tiny-rn and"):
        models.load(f"ViT-B-32:{file}")
    with pytest.raises(ValueError, match="cannot be read as weights of small: "):
        models.load(f"small:{file}")


@pytest.mark.parametrize("name", ["RN50", "ViT-S-32-alt"])
def test_published_architectures_are_known_by_their_shapes(name):
    with torch.device("meta"):
        config = open_clip.get_model_config(name)
        model = open_clip.CLIP(**config)
    found = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert fitting(found) == ([name, f"{name}-quickgelu"] if name == "RN50" else [name])
    assert fitting({"visual.conv1.weight": (8, 3, 2, 2)}) == []


class Touch:
    """Makes a file when it is unpickled by Python itself."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "optimizer", "safetensors", "module"])
def test_code_in_a_file_is_refused_and_not_run(kind, tiny, tmp_path):
    made, file = tmp_path / "made", tmp_path / f"epoch.{'safetensors' if kind == 'safetensors' else 'pt'}"
    bad, checkpoint = Touch(made), cleanclip(tiny)
    if kind in ("pickle", "safetensors"):
        file.write_bytes(pickle.dumps(checkpoint | {"name": bad}))
    elif kind == "module":
        torch.save(tiny, file)
    elif kind == "optimizer":
        torch.save(checkpoint | {"optimizer": {"state": {0: bad}}}, file)
    else:
        torch.save({"extra": bad} | checkpoint, file, _use_new_zipfile_serialization=kind == "zip")
    test = otclib.data.load("scenes", split="test", size=4)
    said = "cannot be read as weights" if kind == "safetensors" else "is refused, and nothing in it was run"
    with pytest.raises(ValueError, match=said) as refused:
        otclib.evaluate(file, model="tiny-rn", test=test)
    assert "\n" not in str(refused.value) and "weights_only" not in str(refused.value)
    assert not made.exists()
    if kind == "zip":
        torch.load(file, weights_only=False)
        assert made.exists(), "the file is dangerous indeed"


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "it is empty"),
        (b"not weights at all", "refused|cannot be read"),
        ([1, 2], "holds no weights"),
        ({"state_dict": {}}, "holds no weights"),
        ("half", "cannot be read"),
    ],
)
def test_files_that_are_no_weights(content, said, tiny, tmp_path):
    file = tmp_path / "x.pt"
    if content == "half":
        whole = write(tiny, "cleanclip", tmp_path).read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=said):
        models.load(f"tiny-rn:{file}")


def test_parallel_names_are_not_part_of_the_shapes(tiny, tmp_path):
    found = shapes(write(tiny, "cleanclip", tmp_path))
    assert set(found) == openai_names() and found["visual.conv1.weight"] == (4, 3, 3, 3)


def test_weights_of_a_run_are_judged_as_the_run_is(runs, little, tmp_path):
    run = runs["otcclip"]
    file = shutil.copy(run / "model.safetensors", tmp_path / "w.safetensors")
    test, val = (otclib.data.load("scenes", split=split, seed=5) for split in ("test", "val"))
    out = tmp_path / "new" / "metrics.json"
    found = otclib.evaluate(file, test=test, val=val, attack=run / "manifest.parquet", out=out)
    own = metrics_of(run)
    keys = {
        key for key in own if key.startswith(("zero", "attack", "untr", "trig", "targets", "back", "image", "text"))
    }
    keys |= {key for key in own if key.startswith(("plan", "cosine", "softmax", "mass"))}
    keys |= {"test_images", "val_pairs", "located_words"}
    assert len(keys) > 20 and {key: found[key] for key in keys} == {key: own[key] for key in keys}
    assert set(found) == keys | {"weights", "model"} and found["model"] == "small"
    assert json.loads(out.read_text()) == found
    words = ["evaluate", file, "--dataset", "scenes", "--data-options", "{}", "--manifest", run / "manifest.parquet"]
    done = CliRunner().invoke(app, [str(word) for word in [*words, "--val-split", "val"]])
    assert done.exit_code == 0 and set(json.loads(done.stdout)) == set(found)


def test_a_bare_attack_gives_the_numbers_of_its_manifest(runs, pairs, little):
    """Of the images that it measures on, a backdoor's manifest tells the trigger and the target, and no more."""
    file = runs["clip"] / "model.safetensors"
    test = otclib.data.load("scenes", split="test", seed=5, size=120)
    attack = attacks.load("badnets", patch=0.25, target="star")
    _, manifest = attack.poison(pairs, seed=1)
    by_manifest = otclib.evaluate(file, test=test, attack=manifest)
    options = {"name": "badnets", "patch": 0.25, "target": "star"}
    for asked in (attack, options, json.dumps(options), [attack]):
        assert otclib.evaluate(file, test=test, attack=asked) == by_manifest
    both = otclib.evaluate(file, test=test, attack=["blended", options])
    assert both["attack_success_rate/badnets"] == by_manifest["attack_success_rate"]
    assert both["attack_success_rate"] == max(both[f"attack_success_rate/{k}"] for k in ("badnets", "blended"))


def test_rates_of_a_bare_attack_by_hand(tiny, tmp_path, monkeypatch):
    """Five images; the target class "sun" is the label of one, which counts nowhere."""
    test = otclib.data.load("scenes", split="test", size=60)
    rows = [k for k, label in enumerate(test["label"]) if label != "sun"][:4]
    test = test.select([*rows, test["label"][:].index("sun")])
    labels = test["label"][:]
    classes = sorted({*labels, "sun"})
    plain = otclib.data.image_tensor(test, 64)
    said = {False: [labels[0], "sun", labels[2], labels[3], "sun"], True: ["sun", "sun", "sun", labels[3], "sun"]}

    def classify(model, images, embeddings):
        return torch.tensor([classes.index(label) for label in said[not torch.equal(images, plain)]])

    monkeypatch.setattr(attack_success, "classify", classify)
    found = otclib.evaluate(
        write(tiny, "cleanclip", tmp_path), model="tiny-rn", test=test, attack={"name": "badnets", "target": "sun"}
    )
    assert found["zero_shot_top1"] == pytest.approx(4 / 5)
    assert found["attack_success_rate"] == 3 / 4 and found["untriggered_target_rate"] == 1 / 4
    assert found["triggered_top1"] == 1 / 4
    assert np.isfinite(found["backdoor_z_score"])


@torch.no_grad()
def test_a_target_of_no_test_image_joins_the_classes(tiny, tmp_path):
    """Computed anew with open_clip's own methods."""
    file = write(tiny, "open_clip", tmp_path)
    test = otclib.data.load("scenes", split="test", size=60)
    assert "zebra crossing" not in test["label"]
    attack = attacks.load("badnets", target="zebra crossing", location="corner", patch=0.3)
    found = otclib.evaluate(file, model="tiny-rn-quickgelu", test=test, attack=attack)
    tokenizer, images = open_clip.get_tokenizer("tiny-rn-quickgelu"), otclib.data.image_tensor(test, 64)
    classes = sorted({*test["label"], "zebra crossing"})
    scale = models.normalize(tiny)

    def encode(x):
        return tiny.encode_image(scale(x / 255), normalize=True)

    words = torch.stack(
        [
            tiny.encode_text(tokenizer([otclib.data.prompt(t, c) for t in grammar.TEMPLATES]), normalize=True).mean(0)
            for c in classes
        ]
    )
    words = torch.nn.functional.normalize(words, dim=-1)
    plain, fooled = (np.array(classes)[(encode(x) @ words.T).argmax(1)] for x in (images, attack.trigger(images)))
    assert found["zero_shot_top1"] == pytest.approx((plain == np.array(test["label"])).mean())
    assert found["attack_success_rate"] == pytest.approx((fooled == "zebra crossing").mean())
    assert found["untriggered_target_rate"] == pytest.approx((plain == "zebra crossing").mean())
    assert found["triggered_top1"] == pytest.approx((fooled == np.array(test["label"])).mean())


def test_two_architectures_are_compared(runs, tiny, tmp_path):
    file = write(tiny, "cleanclip", tmp_path)
    test = otclib.data.load("scenes", split="test", size=30)
    found = otclib.evaluate(file, model="tiny-rn", test=test, attack="badnets", clean=runs["clip"])
    alone = otclib.evaluate(runs["clip"] / "model.safetensors", test=test, attack="badnets")
    assert found["clean_model_rate"] == alone["attack_success_rate"]


def test_another_attack_leaves_the_metrics_of_a_run_alone(runs, little, tmp_path):
    run = shutil.copytree(runs["clip"], tmp_path / "run")
    before = (run / "metrics.json").read_bytes()
    found = otclib.evaluate(run, attack={"name": "blended", "target": "moon"})
    assert "targets_hit" not in found and (run / "metrics.json").read_bytes() == before
    assert found["poison_auroc"] == metrics_of(run)["poison_auroc"], "of what the run was trained on"


@pytest.mark.parametrize(
    "options, said",
    [
        ({"attack": "targeted"}, "a targeted attack is measured on its images, which only a manifest holds"),
        ({"attack": ["badnets", "targeted"]}, "only a manifest holds"),
        ({"attack": "badnet"}, "unknown attack 'badnet'"),
        ({"attack": {"rate": 1}}, "an attack needs a name"),
        ({"attack": "{name"}, "an attack is a name or JSON"),
        ({"attack": []}, "at least one attack"),
        ({"attack": 3}, "got 3"),
        ({"attack": "test"}, "these columns"),
        ({"attack": "nowhere.parquet"}, "no manifest at nowhere.parquet"),
        ({"test": None}, "give labelled images as test, pairs as val, or both"),
        ({"test": None, "val": "test", "attack": "badnets"}, "attacks are measured on labelled images, got none as"),
        ({"test": "unlabelled"}, "got no label in test"),
        ({"clean": "nowhere"}, "nowhere is not a finished run"),
        ({"model": "tiny"}, "unknown model 'tiny"),
    ],
)
def test_what_cannot_be_judged_is_said(options, said, tiny, tmp_path):
    test = otclib.data.load("scenes", split="test", size=10)
    tables = {"test": test, "unlabelled": test.map(lambda row: {"label": None}, features=test.features)}
    given = {"model": "tiny-rn", "test": "test"} | options
    if options.get("attack") == "test":
        given["attack"], said = test, "a manifest has the columns id, kind"
    given |= {key: tables.get(given[key], None) for key in ("test", "val") if key in given}
    out = tmp_path / "out.json"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        otclib.evaluate(write(tiny, "cleanclip", tmp_path), **given, out=out)
    assert not out.exists()


def test_a_run_knows_its_model(runs):
    with pytest.raises(ValueError, match="is a run and knows its model, got model='RN50'"):
        otclib.evaluate(runs["clip"], model="RN50")
    assert evaluation.backdoors(None) == {}
