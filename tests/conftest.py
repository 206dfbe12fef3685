"""Assets built on the spot: a random model of two narrow layers, its processor, and drawn images. No download."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools  # noqa: E402
import shutil  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset, Features, Image, List, Value  # noqa: E402
from tqdm.std import TqdmDefaultWriteLock  # noqa: E402
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification  # noqa: E402

import vl_reward  # noqa: E402, F401 - it registers its reward models
from vl_reward.labelling.verifiers import final_answer  # noqa: E402
from vl_reward.tiny.architectures import FAMILIES, build_config  # noqa: E402
from vl_reward.tiny.digits import compose, compose_text  # noqa: E402
from vl_reward.tiny.preferences import corrupted_pairs  # noqa: E402
from vl_reward.tiny.processor import build_processor  # noqa: E402


torch.set_num_threads(1)
# Forked children share this lock of progress bars: one that is killed while it holds it would stop all others.
TqdmDefaultWriteLock.mp_lock = None
CANDIDATES = Features(
    {"id": Value("string"), "prompt": List({"role": Value("string"), "content": Value("string")})}
    | {"images": List(Image()), "answer": Value("string")}
    | {"responses": List(Value("string")), "finish_reasons": List(Value("string"))}
)


# The others know Qwen2.5-VL alone.
FOR_EACH_FAMILY = {"test_families", "test_prefix_sharing", "test_reward_models", "test_shared_videos"}
FOR_EACH_FAMILY |= {"test_video_rows", "test_each_pixel_once"}


def pytest_generate_tests(metafunc):
    chosen = any("family" in mark.args[0] for mark in metafunc.definition.iter_markers("parametrize"))
    if metafunc.module.__name__ in FOR_EACH_FAMILY and "family" in metafunc.fixturenames and not chosen:
        metafunc.parametrize("family", list(FAMILIES), indirect=True, scope="session")


@pytest.fixture(scope="session")
def family(request):
    return getattr(request, "param", "qwen2_5_vl")


@pytest.fixture(scope="session")
def processor(family):
    return build_processor(family)


@pytest.fixture(scope="session")
def config(processor, family):
    config = build_config(processor.tokenizer, family)
    config.text_config.num_hidden_layers = 2
    config.vision_config.depth = 2
    if family == "qwen2_5_vl":
        config.text_config.layer_types = config.text_config.layer_types[:2]
        config.vision_config.fullatt_block_indexes = [1]
    else:
        config.text_config.num_hidden_layers = 3  # features are added after two, and a third reads both
    return config


@pytest.fixture(scope="session")
def policy_path(config, processor, tmp_path_factory):
    """A random policy in the hub's layout, as `save_pretrained` writes it by default, with its processor."""
    path = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture
def policy(policy_path):
    return AutoModelForImageTextToText.from_pretrained(policy_path, dtype="float32")


@pytest.fixture
def reward_model(policy_path):
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(policy_path, dtype="float32").eval()


@pytest.fixture(scope="session")
def image_pairs():
    """24 preference rows with one or two images each."""
    return corrupted_pairs(compose("sft", 0), 24, 0)


@pytest.fixture(scope="session")
def text_pairs():
    """8 preference rows without images."""
    return corrupted_pairs(compose_text(0), 8, 0)


@pytest.fixture(scope="session")
def mixed_pairs(image_pairs, text_pairs):
    """Alternating rows of one image, two images and none."""
    one = [row for row in image_pairs if len(row["images"]) == 1]
    two = [row for row in image_pairs if len(row["images"]) == 2]
    return list(itertools.chain.from_iterable(zip(one, text_pairs, two, strict=False)))


@pytest.fixture(scope="session")
def labelling_world(policy_path, tmp_path_factory):
    """A reward model with a random head, and 160 prompts with four or five responses each."""
    folder = tmp_path_factory.mktemp("labelling")
    shutil.copytree(policy_path, folder / "model")
    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", dtype="float32")
    model.score.weight.data.normal_()
    model.save_pretrained(folder / "model")
    rows = []
    for number, row in enumerate(corrupted_pairs(compose("sft", 3), 160, 3)):
        right, wrong = (row[side][0]["content"] for side in ("chosen", "rejected"))
        responses = [right, wrong, right, "I see nothing.", *([""] if number % 3 == 0 else [])]
        reasons = ["stop", "stop", "stop", "length" if number % 2 else "stop", *["stop"] * (len(responses) - 4)]
        rows.append({key: row[key] for key in ("id", "prompt", "images")} | {"answer": final_answer(right)})
        rows[-1] |= {"responses": responses, "finish_reasons": reasons}
    Dataset.from_list(rows, CANDIDATES).save_to_disk(folder / "candidates")
    return folder
