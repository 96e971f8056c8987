"""Small images: readers with good and malformed input, labels, decoding, weights files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from teachers.errors import MfdError, TeacherError
from teachers.images import ImageNetwork, ImagesData, ImagesDataSettings, ImagesSettings, ImagesTeacher, read_images
from teachers.networks.dit import DiT
from teachers.registry import data as data_registry
from teachers.registry import teachers as teacher_registry
from teachers.weights import HEADER

ARCHITECTURE = {
    "image_size": 8, "channels": 1, "patch_size": 4, "width": 8, "depth": 1, "heads": 2, "num_classes": 3,
    "mlp_ratio": 2.0,
}  # fmt: skip


def npz(path, images, labels, **more):
    np.savez(path, images=images, labels=labels, **more)
    return path


def pictures(count=6, size=8, channels=None):
    shape = (count, size, size) + ((channels,) if channels else ())
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def weights_file(path, architecture=ARCHITECTURE, change=None):
    torch.manual_seed(0)
    tensors = ImagesTeacher(None, architecture).build_network().state_dict()
    if change is not None:
        change(tensors)
    save_file(tensors, path, metadata={HEADER: json.dumps({"type": "images", "architecture": architecture})})
    return path


def load(path):
    return ImagesTeacher.load(ImagesSettings(type="images", weights=str(path)))


@pytest.fixture
def teacher(tmp_path):
    return load(weights_file(tmp_path / "teacher.safetensors"))


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("kind", [np.uint8, np.int64, np.int32])
def test_npz(tmp_path, channels, kind):
    array = pictures(channels=channels)
    images, labels = read_images(npz(tmp_path / "a.npz", array, np.arange(6, dtype=kind)))
    assert images.shape == (6, channels or 1, 8, 8) and images.dtype == torch.uint8
    assert labels.tolist() == list(range(6)) and labels.dtype == torch.int64
    plain = array if channels else array[..., None]
    assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), plain)


def test_folder_of_classes(tmp_path):
    for label, name in enumerate(["cat", "dog"]):
        (tmp_path / name).mkdir()
        for index in range(2):
            picture = np.full((8, 8, 3), 100 * label + index, dtype=np.uint8)
            Image.fromarray(picture).save(tmp_path / name / f"{index}.png")
        (tmp_path / name / "notes.txt").write_text("not a picture")
    images, labels = read_images(tmp_path)
    assert images.shape == (4, 3, 8, 8) and labels.tolist() == [0, 0, 1, 1]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 100, 101]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (pictures().astype(np.float32), np.zeros(6), "float32"),
        (np.zeros((6, 8, 9), np.uint8), np.zeros(6), "6, 8, 9"),
        (np.zeros((6, 8), np.uint8), np.zeros(6), "6, 8"),
        (np.zeros((0, 8, 8), np.uint8), np.zeros(0), "0, 8, 8"),
        (np.zeros((1, 200, 200), np.uint8), np.zeros(1), "200 pixels"),
        (pictures(), np.zeros(5), "5 labels"),
        (pictures(), np.eye(6), "labels"),
        (pictures(), np.linspace(0, 1, 6), "labels"),
        (pictures(), np.array([0, 1, 2, 3, 4, -1]), "labels"),
        (np.array([{"a": 1}], dtype=object), np.zeros(1), "cannot be read"),
    ],
)
def test_malformed_npz_is_refused_in_words(tmp_path, images, labels, words):
    with pytest.raises(TeacherError, match=words) as caught:
        read_images(npz(tmp_path / "bad.npz", images, labels))
    assert "bad.npz" in caught.value.found and caught.value.allowed


def test_what_is_no_data_set_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "names.npz", pictures=pictures())
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.npz").touch()
    (tmp_path / "cut.npz").write_bytes(npz(tmp_path / "whole.npz", pictures(), np.arange(6)).read_bytes()[:300])
    for path in ("nothing.npz", "cut.npz", "text.npz", "names.npz", "missing.npz", "empty", "missing"):
        with pytest.raises(TeacherError, match=path):
            read_images(tmp_path / path)


def test_a_broken_or_odd_picture_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(pictures(1)[0]).save(tmp_path / "a" / "0.png")
    (tmp_path / "a" / "1.png").write_bytes(b"not a picture")
    with pytest.raises(TeacherError, match=r"1\.png"):
        read_images(tmp_path)
    Image.fromarray(pictures(1, 16)[0]).save(tmp_path / "a" / "1.png")
    with pytest.raises(TeacherError, match="16, 16"):
        read_images(tmp_path)


def test_states_and_reference_are_scaled(tmp_path):
    path = npz(tmp_path / "a.npz", np.array([[[0, 255], [51, 102]]], np.uint8), np.array([0]))
    data = ImagesData.load(ImagesDataSettings(type="images", path=str(path)), None)
    states = data.states(torch.tensor([0]))
    torch.testing.assert_close(states.flatten(), torch.tensor([-1.0, 1.0, -0.6, -0.2]))
    torch.testing.assert_close(data.reference(None, 0).flatten(), torch.tensor([0.0, 1.0, 0.2, 0.4]))
    assert data.size == 1 and data.condition(torch.tensor([0]))["label"].tolist() == [0]


def test_images_have_to_be_the_teachers(tmp_path, teacher):
    path = npz(tmp_path / "a.npz", pictures(size=4), np.arange(6))
    with pytest.raises(TeacherError, match=r"images of \[1, 4, 4\]") as caught:
        ImagesData.load(ImagesDataSettings(type="images", path=str(path)), teacher)
    assert "[1, 8, 8]" in caught.value.allowed


def test_classes_have_to_be_the_teachers(tmp_path, teacher):
    """One class too many would silently be the class that means none."""
    path = npz(tmp_path / "a.npz", pictures(), np.array([0, 1, 2, 3, 0, 1]))
    with pytest.raises(TeacherError, match="4 classes") as caught:
        ImagesData.load(ImagesDataSettings(type="images", path=str(path)), teacher)
    assert "3" in caught.value.allowed


@pytest.mark.parametrize("asked", [[3], [-1], ["0"], [0, 99], [1.5], [True]])
def test_labels_that_do_not_exist(teacher, asked):
    with pytest.raises(TeacherError) as caught:
        teacher.encode(asked)
    assert caught.value.allowed == "class indices from 0 to 2"


def test_labels(teacher):
    condition = teacher.encode(teacher.examples(5))
    assert condition["label"].tolist() == [0, 1, 2, 0, 1]
    null = teacher.null_condition(condition)
    assert null["label"].tolist() == [3] * 5 and null["label"].dtype == torch.int64


def test_decode(teacher):
    latents = torch.tensor([-5.0, -1.0, 0.0, 1.0, 5.0])
    assert teacher.decode(latents).tolist() == [0, 0, 0.5, 1, 1]


def test_identity_is_the_files_hash(tmp_path, teacher):
    def changed(tensors):
        tensors["output.bias"] += 1

    other = load(weights_file(tmp_path / "other.safetensors", change=changed))
    assert teacher.identity() == load(tmp_path / "teacher.safetensors").identity() != other.identity()
    assert len(teacher.identity()["weights_sha256"]) == 64


def test_the_frozen_network_and_its_copy(teacher):
    assert not teacher.network.training and not any(p.requires_grad for p in teacher.network.parameters())
    student = teacher.initial_network(0)
    assert student.training and all(p.requires_grad for p in student.parameters())
    student.output.bias.data += 1
    assert not torch.equal(student.output.bias, teacher.network.output.bias)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tensors: tensors.pop("output.bias"), "missing output.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "unexpected extra"),
        (lambda tensors: tensors.update({"output.bias": torch.zeros(3)}), "shape"),
        (lambda tensors: tensors.update({"output.bias": torch.full((16,), torch.nan)}), "NaN"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, change, words):
    with pytest.raises(MfdError, match=words):
        load(weights_file(tmp_path / "bad.safetensors", change=change))


def test_files_that_hold_no_teacher_are_refused(tmp_path):
    missing, text, foreign = (tmp_path / name for name in ("no.safetensors", "text.safetensors", "foreign.safetensors"))
    text.write_text("hello")
    save_file({"a": torch.zeros(1)}, foreign)
    for path, words in ((missing, "no such file"), (text, "not a readable"), (foreign, "not one that mfd wrote")):
        with pytest.raises(MfdError, match=words):
            load(path)
    for header in ({"type": "gmm"}, {"architecture": {"dim": 2}}, {"architecture": {**ARCHITECTURE, "width": 9}}):
        save_file({"a": torch.zeros(1)}, foreign, metadata={HEADER: json.dumps(header)})
        with pytest.raises(TeacherError, match="holds no teacher"):
            load(foreign)


def test_a_teacher_to_train_fits_its_data(tmp_path):
    path = npz(tmp_path / "a.npz", pictures(channels=3), np.arange(6))
    data = ImagesData.load(ImagesDataSettings(type="images", path=str(path)), None)
    settings = ImagesSettings(type="images", weights="none")
    teacher = ImagesTeacher.untrained(settings, ImageNetwork(), data)
    assert teacher.sample_shape == (3, 8, 8) and teacher.classes == 6
    with pytest.raises(TeacherError, match="network"):
        ImagesTeacher.untrained(settings, ImageNetwork(patch_size=3), data)


@pytest.fixture(scope="module")
def digits():
    teacher = teacher_registry.get("digits").load(teacher_registry.get("digits").Settings(type="digits"))
    return teacher, data_registry.get("digits").load(data_registry.get("digits").Settings(type="digits"), teacher)


def test_digits_shapes(digits):
    teacher, data = digits
    assert teacher.sample_shape == (1, 8, 8) and teacher.classes == 10 and data.size == 1797
    states = data.states(torch.arange(100))
    assert float(states.min()) == -1 and float(states.max()) == 1


def test_digits_decoding_states_gives_the_reference(digits):
    teacher, data = digits
    decoded = teacher.decode(data.states(torch.arange(data.size)))
    torch.testing.assert_close(decoded, data.reference(None, 0), atol=1e-6, rtol=0)


def test_digits_the_classifier_knows_the_digits(digits):
    _, data = digits
    labels = data.condition(torch.arange(500))["label"]
    assert float((data.classify(data.reference(None, 0)[:500]) == labels).float().mean()) > 0.95


def test_digits_spaces(digits):
    _, data = digits
    spaces = data.spaces()
    samples = data.reference(None, 0)[:8]
    assert spaces["frechet"](samples).shape == (8, 64)
    assert spaces["frechet_features"](samples).shape == (8, 48)


def test_digits_weights_of_another_kind_are_refused(tmp_path):
    path = weights_file(tmp_path / "wide.safetensors", {**ARCHITECTURE, "image_size": 16})
    kind = teacher_registry.get("digits")
    other = kind.load(kind.Settings(type="digits", weights=str(path)))
    with pytest.raises(TeacherError, match=r"images of \[1, 8, 8\]"):
        data_registry.get("digits").load(data_registry.get("digits").Settings(type="digits"), other)


@pytest.mark.parametrize(
    ("key", "value"),
    [("width", 2**20), ("depth", 10**9), ("image_size", 2**20), ("num_classes", 10**9), ("channels", 10**9),
     ("mlp_ratio", 1e308), ("patch_size", 0), ("heads", 0), ("depth", None), ("width", "8"), ("width", [8])],
)  # fmt: skip
def test_a_file_that_claims_sizes_it_does_not_have_takes_no_memory(tmp_path, key, value):
    path = tmp_path / "teacher.safetensors"
    tensors = DiT(**ARCHITECTURE).state_dict()
    save_file(tensors, path, {"mfd": json.dumps({"architecture": ARCHITECTURE})})
    assert ImagesTeacher.load(ImagesSettings(type="images", weights=str(path)))
    save_file(tensors, path, {"mfd": json.dumps({"architecture": {**ARCHITECTURE, key: value}})})
    with pytest.raises(MfdError, match=r"holds no teacher of type 'images'|weights do not fit the network"):
        ImagesTeacher.load(ImagesSettings(type="images", weights=str(path)))
